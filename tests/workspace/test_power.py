"""A power cut at any sync: unsynced writes are lost; the takedown ends in never-had all the same.

`powercut.c` is built and preloaded into the process that takes down. Run for every sync with SOAK.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killing import check_finished, prepare

from llm_unlearn import Workspace

COMPILER = shutil.which("cc") or shutil.which("gcc")
SOAK = int(os.environ.get("SOAK", "0"))
SOURCE = Path(__file__).with_name("powercut.c")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

_CHILD = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from llm_unlearn import Workspace
from llm_unlearn.takedown.request import Request

with Workspace.open({path!r}) as workspace:
    workspace.takedown(
        Request.internal(subject="author-1", id="case"),
        on_state=lambda state: print(state, flush=True),
        probe=False,
    )
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("power") / "powercut.so"
    subprocess.run(
        [
            str(COMPILER),
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            str(made),
            str(SOURCE),
            "-ldl",
            "-lpthread",
        ],
        check=True,
    )
    return made


def _cut(library: Path, folder: Path, at: int) -> tuple[int, list[str]]:
    """Take down in `folder`/ws until sync number `at`; the exit code and the states reached."""
    shadow = folder.with_name(folder.name + "-shadow")
    shadow.mkdir()
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "POWER_ROOT": str(folder),
        "POWER_SHADOW": str(shadow),
        "POWER_AT": str(at),
    }
    code = _CHILD.format(paths=sys.path, path=str(folder / "ws"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.split()


def _key(path: Path) -> str:
    """As the library names a file: inode number and time of birth."""
    said = subprocess.run(
        ["stat", "-c", "%i %.9W", str(path)], stdout=subprocess.PIPE, text=True, check=True
    )
    inode, birth = said.stdout.split()
    seconds, nanoseconds = birth.split(".")
    return f"{inode}-{seconds}-{int(nanoseconds)}"


def _after_the_cut(folder: Path) -> None:
    """Put `folder` together as the disk would have it."""
    shadow = folder.with_name(folder.name + "-shadow")

    def build(key: str, out: Path) -> None:
        out.mkdir()
        listing = shadow / key  # a folder whose name was synced and never itself comes back empty
        for line in listing.read_text().splitlines() if listing.exists() else ():
            inner, name = line.split(" ", 1)
            kept = shadow / inner
            if inner in folders:
                build(inner, out / name)
            else:
                (out / name).write_bytes(kept.read_bytes() if kept.exists() else b"")

    folders = {_key(path) for path in (folder, *folder.rglob("*")) if path.is_dir()}
    cut = folder.with_name(folder.name + "-cut")
    build(_key(folder), cut)
    shutil.rmtree(folder)
    shutil.rmtree(shadow)
    cut.rename(folder)


def test_a_power_cut_at_any_sync(
    library: Path, tiny_references: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    prepared = prepare(tiny_references, tmp_path_factory)
    base = tmp_path_factory.mktemp("cut")

    def run(at: int) -> bool:
        folder = base / f"at-{at}"
        folder.mkdir()
        prepared.copy(folder / "ws").close()
        code, states = _cut(library, folder, at)
        assert code in (0, -signal.SIGKILL)
        _after_the_cut(folder)
        with Workspace.open(folder / "ws", models=prepared.models) as workspace:
            mark = workspace.opened.vault.mark("subject", "author-1")
            if "received" in states:  # what was acknowledged holds
                assert not workspace.opened.vault.records(subject=mark)
            workspace.resume()
            if workspace.opened.vault.records(subject=mark):
                assert "received" not in states
                assert not workspace.desk.all()
                workspace.takedown(subject="author-1", probe=False)
            check_finished(workspace, prepared.never_had)
        shutil.rmtree(folder)
        return code == 0

    if SOAK:
        at = 1
        while not run(at):
            at += 1
        assert at > 20
    else:
        assert not run(17)
        assert run(10_000)
