"""Files that are whole or absent, and the operating system's refusals in the error tree."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.errors import EnvironmentFailure, WorkspaceReadOnly
from llm_unlearn.files import os_errors, write_atomic


@given(old=st.binary(max_size=64), new=st.binary(max_size=200_000))
def test_the_file_holds_the_new_bytes_and_nothing_else_appears(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes
) -> None:
    folder = tmp_path_factory.mktemp("files")
    path = folder / "a.bin"
    write_atomic(path, old)
    write_atomic(path, new)
    assert path.read_bytes() == new
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_the_mode_is_exact_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "a", b"x", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: EFBIG comes from write() just as ENOSPC does."""
    path = tmp_path / "a"
    write_atomic(path, b"old")
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from llm_unlearn.files import write_atomic\n"
        "from llm_unlearn.errors import EnvironmentFailure\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(Path(sys.argv[1]), b'x' * 5000)\n"
        "except EnvironmentFailure as error: print(error.problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cannot write {path}: disk full (File too large)\n"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_the_machine_s_failure(number: int) -> None:
    told = rf"^cannot save it: disk full \({os.strerror(number)}\): here free some space"
    with pytest.raises(EnvironmentFailure, match=told), os_errors("save it"):
        raise OSError(number, os.strerror(number), "here")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_refused_write_is_a_read_only_workspace(number: int) -> None:
    with pytest.raises(WorkspaceReadOnly, match=r"^cannot save it: "), os_errors("save it"):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing" / "a", b"x")
    with pytest.raises(KeyError), os_errors("save it"):
        raise KeyError("x")
