"""Files that are whole or absent, and operating-system errors in the words of the error tree.

Guarantees: after `write_atomic` returns, the file holds exactly the data and survives a power cut;
killed at any point, the file holds either its old bytes or its new ones, never a mixture, and a
failed write leaves no temporary file. It does not erase the replaced bytes from the disk, so a key
must never be written through it when the old key is to be destroyed. A process killed outright
(SIGKILL) can leave one temporary file, named `.NAME.XXXXXXXX.tmp`, beside the target.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm_unlearn.errors import EnvironmentFailure, WorkspaceReadOnly

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@contextlib.contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turn a full disk or a refused write inside the block into the error tree.

    `what` says what was being done, as in "write the config". ENOSPC, EDQUOT and EFBIG become
    `EnvironmentFailure`; EROFS, EACCES and EPERM become `WorkspaceReadOnly`; any other `OSError`
    passes through unchanged.
    """
    try:
        yield
    except OSError as error:
        where = "" if error.filename is None else f": {error.filename}"
        if error.errno in _FULL:
            raise EnvironmentFailure(
                f"cannot {what}: disk full ({error.strerror}){where}",
                "free some space, or raise the quota or the file-size limit, and run it again",
            ) from error
        if error.errno in _READ_ONLY:
            raise WorkspaceReadOnly(
                f"cannot {what}: {error.strerror}{where}",
                "give this user write access there, or work on a copy that is writable",
            ) from error
        raise


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` with `data`, all or nothing and durably.

    The bytes go to a temporary file in the same directory, which is synced, renamed over `path`,
    and made durable by syncing the directory. `mode` is the file's exact mode, whatever the umask.

    Raises `EnvironmentFailure` when the disk is full, `WorkspaceReadOnly` when writing is refused,
    `OSError` for anything else.
    """
    with os_errors(f"write {path}"):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # an interrupt can come just after the rename
            raise
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable: renames and removals survive a power cut.

    Raises `OSError`.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
