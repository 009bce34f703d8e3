"""The Dockerfile and the compose file, read as far as they can be without Docker."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from llm_unlearn.cli.app import _app

ROOT = Path(__file__).parents[2]


def test_the_image_runs_as_nobody_in_particular() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    final = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    users = [rest for name, rest in final if name == "USER"]
    assert users == ["unlearn"]
    order = [name for name, _ in final]
    assert order.index("USER") < order.index("ENTRYPOINT") < order.index("CMD")
    assert not [rest for name, rest in final if name in ("ARG", "ENV") and "secret" in rest.lower()]
    assert any(
        name == "VOLUME" and "/workspace" in rest and "/keys" in rest for name, rest in final
    )
    for name, rest in steps:
        if name == "COPY" and not rest.startswith("--from"):
            assert (ROOT / rest.split()[0]).exists()


def test_compose_gives_no_rights_and_its_commands_parse() -> None:
    text = (ROOT / "compose.yaml").read_text()
    service = yaml.safe_load(text)["services"]["server"]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    said = re.search(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert said is not None
    commands = [yaml.safe_load(said[1])]
    commands += [
        shlex.split(line.split("server ", 1)[1])
        for line in text.splitlines()
        if line.startswith("# docker compose run")
    ]
    for command in commands:
        words = [word for word in command if not word.startswith("-")]
        depth = 2 if words[0] == "access" else 1
        done = CliRunner().invoke(_app(), [*words[:depth], "--help"])
        assert done.exit_code == 0, command
        for option in (word for word in command if word.startswith("--")):
            assert option in done.output
