"""Folders of other stores, each made once by its own library in a process of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

Make = Callable[[str], Path]
Listing = dict[str, tuple[str, int, int]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a kind. Read only: take `copied` to change one."""
    base = tmp_path_factory.mktemp("foreign")

    def make(kind: str) -> Path:
        folder = base / kind
        if not folder.exists():
            script = Path(__file__).parent / "folders.py"
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANONYMIZED_TELEMETRY": "False"}
            command = [sys.executable, str(script), kind, str(folder)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return folder

    return make


@pytest.fixture
def copied(made: Make, tmp_path: Path) -> Make:
    """A folder of a kind that the test may change."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(made(kind), tmp_path / kind, symlinks=True))

    return copy


@pytest.fixture
def listing() -> Callable[[Path], Listing]:
    """Everything in a folder by name: digest, size, time of the last change."""

    def listed(folder: Path) -> Listing:
        found: Listing = {}
        for path in sorted([folder, *folder.rglob("*")]):
            status = path.lstat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (digest, status.st_size, status.st_mtime_ns)
        return found

    return listed
