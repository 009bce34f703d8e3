"""`--help` and the command line itself: quick, documented, and wrong ones refused with 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = (
    "init",
    "ingest",
    "scan",
    "import",
    "train",
    "ask",
    "forget",
    "compare",
    "takedown",
    "correct",
    "takedown submit",
    "takedown list",
    "takedown show",
    "takedown plan",
    "takedown approve",
    "takedown run",
    "takedown refuse",
    "takedown withdraw",
    "takedown restore",
    "takedown review",
    "takedown receipt",
    "takedown copies",
    "takedown resume",
    "resume",
    "verify",
    "status",
    "where",
    "demo",
    "bench store",
    "bench train",
    "bench answer",
    "bench forget",
    "bench takedown",
    "bench serve",
    "bench guard",
    "mcp",
    "serve",
    "access add",
    "access list",
    "access revoke",
    "audit",
)
HEAVY = {
    *("accelerate", "datasets", "faiss", "huggingface_hub", "numpy", "peft", "safetensors"),
    *("sentence_transformers", "sqlite3", "tokenizers", "torch", "transformers", "yaml"),
    *("llm_unlearn.config", "llm_unlearn.workspace"),
}
_PROBE = """
import io, json, sys
from contextlib import redirect_stdout
from llm_unlearn.cli import main
shown = {}
for name in ["", *sys.argv[1:]]:
    with redirect_stdout(io.StringIO()) as out:
        code = main([*name.split(), "--help"])
    shown[name] = (code, out.getvalue())
print(json.dumps([shown, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """What each `--help` printed, and the modules loaded by all of them together."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "COLUMNS": "100",
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *COMMANDS],
        cwd=tmp_path_factory.mktemp("help"),
        env=environment,
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    found: tuple[dict[str, tuple[int, str]], list[str]] = json.loads(done.stdout)
    return found


def test_help_loads_no_model_library(shown: Any) -> None:
    assert not HEAVY & set(shown[1])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_documents_its_options_and_exit_codes(shown: Any, command: str) -> None:
    code, text = shown[0][command]
    assert code == 0
    assert "Exit codes:" in text
    assert re.search(r"\b0 +done", text)
    assert re.search(r"130 +stopped by you", text)
    if command:
        assert ("--json" in text) == (command not in ("mcp", "serve"))
        assert "--debug" in text
    else:
        assert all(name.split()[0] in text for name in COMMANDS)


@pytest.mark.parametrize("command", ["audit", "serve"])  # a kit's folder, a webhook's URL
def test_what_is_handed_over_may_be_unusable(shown: Any, command: str) -> None:
    assert re.search(r"\b3 +what was handed over is unusable", shown[0][command][1])


def test_the_manual_names_every_command_option_and_exit_code(shown: Any) -> None:
    from llm_unlearn import errors
    from llm_unlearn.cli.codes import MEANING

    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for command in COMMANDS:
        assert f"llm-unlearn {command}" in manual
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown[0][command][1]):
            assert option in manual, (command, option)
    for code, meaning in MEANING.items():
        assert f"| {code} | {meaning} |" in manual
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {value.exit_code for value in classes if hasattr(value, "exit_code")}
    assert codes <= MEANING.keys()


def test_no_command_shows_the_help(cli: Any) -> None:
    done = cli()
    assert done.code == 0
    assert "Usage" in done.out


def test_the_version_is_the_package_s(cli: Any) -> None:
    done = cli("--version")
    assert done.code == 0
    assert re.fullmatch(r"llm-unlearn \d+\.\d+\.\d+\S*\n", done.out)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["conquer"], "conquer"),
        (["train", "ws", "--fast"], "--fast"),
        (["status"], "WS"),
        (["verify", "receipt.json"], "--key"),
        (["takedown", "ws", "--yes"], "exactly one"),
        (["takedown", "ws", "--yes", "-s", "a", "-i", "b"], "exactly one"),
        (["takedown", "ws", "-s", "a"], "--yes"),
    ],
)
def test_a_wrong_command_line_is_refused_with_2(cli: Any, arguments: list[str], word: str) -> None:
    cli(*arguments).refused(2, word, "--help")


@pytest.mark.parametrize("command", ["mcp", "serve"])  # they speak themselves
def test_what_speaks_has_no_json(cli: Any, command: str) -> None:
    done = cli(command, "ws", "--json")
    assert done.code == 2
    assert done.json["error"]["problem"] == "No such option: --json"


def test_a_wrong_command_line_is_an_object_for_scripts(cli: Any) -> None:
    done = cli("train", "ws", "--fast", "--json")
    assert done.code == 2
    assert done.json["error"]["exit_code"] == 2
    assert "--fast" in done.json["error"]["problem"]
