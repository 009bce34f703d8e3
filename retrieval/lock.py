"""One writer at a time: an exclusive lock on a file, released by the kernel when its holder dies.

Guarantees: between processes and between objects of one process at most one `WriterLock` on a path
is held. It does not stop readers, and it does not work across machines on file systems whose
`flock` is local (some NFS set-ups).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from llm_unlearn.errors import WorkspaceLocked
from llm_unlearn.files import os_errors


class WriterLock:
    """Holds `path` (created when absent) locked from `acquire` to `release`; a context manager.

    Raises:
        WorkspaceLocked: another process (named by its pid) or another object holds it.
        WorkspaceReadOnly: the lock file cannot be opened for writing.
        EnvironmentFailure: the disk is full; the lock is not held then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock at once or raise; taking it twice with one object is an error too."""
        with os_errors(f"lock {self.path}"):
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with os_errors(f"lock {self.path}"):
                self._lock(file)
        except BaseException:
            os.close(file)  # which gives up the lock if it was taken already
            raise
        self._file = file

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise WorkspaceLocked(
                f"{self.path.parent} is being written to by process {holder}.",
                "Wait for it to finish, or end it.",
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; does nothing when it is not held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
