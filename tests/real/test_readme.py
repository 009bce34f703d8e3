"""Every command of the README's own-files block, run as written on the packaged models."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
README = Path(__file__).parents[2] / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_commands_of_the_readme_do_what_they_say(tmp_path: Path) -> None:
    (lines,) = [block for block in _blocks("sh") if "llm-unlearn init" in block]
    (tmp_path / "docs.jsonl").write_text(_blocks("json")[0], encoding="utf-8")
    said = {}
    for line in lines.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "llm-unlearn"
        if words[1] == "takedown":
            words.append("--yes")  # no terminal here to ask on
        done = subprocess.run(
            [sys.executable, "-m", "llm_unlearn.cli", *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[words[1]] = done.stdout + done.stderr
    assert "Marta Oyelle" in said["ask"]
    assert "keeper-1" in said["ask"]
    assert "00000001.json" in said["takedown"]
    assert (tmp_path / "KEYS" / "receipts.pub.pem").is_file()


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    (lines,) = [block for block in _blocks("sh") if block.startswith("make")]
    for line in lines.splitlines():
        make, target = shlex.split(line, comments=True)
        assert make == "make"
        assert f"\n{target}:" in makefile
