"""The SQLite file that everything sealed lives in, with the settings that deletion depends on.

Guarantees: a transaction is durable when it returns and all or nothing when killed; deleted rows
are overwritten with zeros in the file (`secure_delete`, checked, since its default differs between
builds) and gone from the write-ahead log after `erase_journal`; a file that is damaged, newer or
not a database is refused. It does not encrypt: whoever writes a row seals it first. It does not
erase the blocks that a truncated log gives back to the file system.

One connection per object under a lock: threads take turns, processes read side by side.

A reader that may not make SQLite's files beside the database reads it as a file that nobody changes,
and looks before every reading whether somebody did. It needs a log that is empty, or whole with its index.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llm_unlearn.errors import (
    Damaged,
    EnvironmentFailure,
    InputError,
    UnlearnError,
    WorkspaceLocked,
    WorkspaceMissing,
    WorkspaceReadOnly,
    WorkspaceVersion,
)
from llm_unlearn.files import os_errors
from llm_unlearn.retrieval.migrations import FORMAT, MIGRATIONS

_BUSY_SECONDS = 10.0
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE slots (slot INTEGER PRIMARY KEY);
"""
_FULL = {sqlite3.SQLITE_FULL}
_READ_ONLY = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
Stamp = tuple[tuple[int, int, int] | None, ...]
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Database:
    """One open database. Build it with `open`; close it with `close` or as a context manager."""

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self._connection, self._stamp = _connect(path, readonly=readonly)
        self._lock = threading.RLock()
        self._depth = 0
        self._commits = 0
        self._after: list[Callable[[], object]] = []

    @classmethod
    def open(cls, path: Path, *, create: bool = False, readonly: bool = False) -> Database:
        """Open the database at `path`, or make it with mode 0600 when `create` is given.

        Raises:
            InputError: `create` is given and the file is there.
            WorkspaceMissing: nothing at `path` and `create` not given.
            WorkspaceReadOnly: it cannot be written and `readonly` was not given; or what was last
                written lies in a log that cannot be read without writing.
            WorkspaceVersion: a newer version of this package wrote it.
            Damaged: it is not a database, or its structure is broken.
        """
        if create:
            if path.exists():
                raise InputError(f"{path} is there already.", "Open it, or choose another place.")
            with os_errors(f"write {path}"):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        elif not path.is_file():
            raise WorkspaceMissing(f"no {path.name} in {path.parent}.", "Create it first.")
        elif not readonly and not os.access(path, os.W_OK):
            raise WorkspaceReadOnly(f"{path} cannot be written.", "Give this user write access.")
        if not create and path.stat().st_size == 0:
            raise Damaged(f"{path} is empty.", "Restore a backup.")
        with _sqlite_errors(path):
            database = cls(path, readonly=readonly)
            try:
                database._prepare(create=create)
            except BaseException:
                database._connection.close()
                raise
        return database

    def _prepare(self, *, create: bool) -> None:
        run = self._connection.execute
        if create:
            run("PRAGMA page_size=4096")
        if not self.readonly:
            run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run("PRAGMA foreign_keys=ON")
        run("PRAGMA wal_autocheckpoint=8192")  # 32 MiB; small writes are checkpointed by hand
        if not self.readonly and run("PRAGMA secure_delete=ON").fetchone() != (1,):
            raise EnvironmentFailure("this SQLite cannot overwrite deleted rows.", "Use another.")
        if create:
            with self.transaction() as connection:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={FORMAT}")
            self.erase_journal()
        (version,) = run("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise WorkspaceVersion(
                f"{self.path} has format {version}, this package knows {FORMAT}.", "Upgrade it."
            )
        if version < 1:
            raise Damaged(f"{self.path} is not a workspace database.", "Restore a backup.")
        self.check()
        if version < FORMAT:
            self._migrate(version)

    def _migrate(self, version: int) -> None:
        if self.readonly:
            raise WorkspaceVersion(
                f"{self.path} has the older format {version}.", "Open it for writing once."
            )
        for step in MIGRATIONS[version - 1 :]:
            with self.transaction() as connection:
                step.apply(connection)
                connection.execute(f"PRAGMA user_version={step.before + 1}")
        self.erase_journal()

    def check(self) -> None:
        """Raise `Damaged` when SQLite finds its structure broken (pages, indexes, free list)."""
        with self.reading() as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found == "ok" and connection.execute("PRAGMA foreign_key_check").fetchone():
                found = "a row points to another that is not there"
        if found != "ok":
            raise Damaged(
                f"{self.path} is damaged ({found.splitlines()[-1]}).", "Restore a backup."
            )

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Write: all of the block or nothing, durable at the end; an inner one joins the outer.

        With `durable` false a power cut, not a kill, may undo it until the next `erase_journal`:
        for what the sweep would do again, right before that call. It saves two syncs.

        Raises:
            WorkspaceReadOnly, WorkspaceLocked, EnvironmentFailure (disk full), Damaged.
        """
        self.require_writable()
        with self._lock, _sqlite_errors(self.path):
            self._depth += 1
            try:  # around the beginning too: an interrupt may come right after it
                if self._depth == 1:
                    level = "FULL" if durable else "NORMAL"
                    self._connection.execute(f"PRAGMA synchronous={level}")
                    self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                if self._depth == 1:
                    self._commits += 1  # before it: an interrupt may come right after it
                    self._connection.execute("COMMIT")
            except BaseException:
                if self._depth == 1:
                    self._after.clear()
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1
            if self._depth == 0:
                after, self._after = self._after, []
                for action in after:
                    action()

    def require_writable(self) -> None:
        """Raise `WorkspaceReadOnly` when open for reading: call it before touching keys."""
        if self.readonly:
            raise WorkspaceReadOnly(f"{self.path} is open for reading only.", "Open it to write.")

    def after_commit(self, action: Callable[[], object]) -> None:
        """Run `action` once the outermost transaction is durable; never if it is rolled back.

        At once when no transaction is open. A process killed in between does not run it: whatever
        it does must also be done by the next writer's sweep.
        """
        with self._lock:
            if self._depth:
                self._after.append(action)
            else:
                action()

    def at_rest(self) -> bool:
        """Whether no transaction is open; only for the thread that opened one, or would."""
        with self._lock:
            return self._depth == 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read: every query of the block sees the same state."""
        with self._lock, _sqlite_errors(self.path):
            outer = self._connection.in_transaction
            if not outer:
                self._look_again()
            try:
                if not outer:
                    self._connection.execute("BEGIN")
                yield self._connection
            finally:
                if not outer:
                    self._connection.rollback()

    def change(self) -> int:
        """A number that is another one after any commit, by this object or by any process."""
        with self._lock, _sqlite_errors(self.path):
            self._look_again()
            (others,) = self._connection.execute("PRAGMA data_version").fetchone()
            return int(others) << 32 | self._commits

    def _look_again(self) -> None:
        """Open anew what was opened as a file that nobody changes, and was changed."""
        if self._stamp is not None and self._stamp != _stamp_of(self.path):
            connection, stamp = _connect(self.path, readonly=True)
            self._connection.close()
            self._connection, self._stamp = connection, stamp
            self._commits += 1

    def erase_journal(self) -> bool:
        """Move the write-ahead log into the file and cut it to nothing; call it after deletions.

        Waits for readers up to ten seconds. False when one held on: then the log goes with the
        next call, or when the last process closes the database. Not inside a transaction: there
        use `after_commit(database.erase_journal)`.
        """
        with self._lock, _sqlite_errors(self.path):
            deadline = time.monotonic() + _BUSY_SECONDS
            while True:
                busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                if not busy or time.monotonic() > deadline:
                    return not busy
                time.sleep(0.002)

    def value(self, name: str) -> bytes | None:
        """An entry of the shared table `meta`."""
        with self.reading() as connection:
            row = connection.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_value(self, name: str, value: bytes) -> None:
        """Write an entry of `meta`; it is not secret, so never put text there."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Close the connection; the last one to close removes the write-ahead log."""
        with self._lock, _sqlite_errors(self.path):
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(path: Path, *, readonly: bool) -> tuple[sqlite3.Connection, Stamp | None]:
    """A connection; and what the files looked like, if it will not see changes by itself.

    Raises:
        WorkspaceReadOnly: see `Database.open`.
    """
    try:
        return _opened(path, "mode=ro" if readonly else "mode=rw"), None
    except sqlite3.OperationalError as error:
        if not readonly or error.sqlite_errorcode & 0xFF not in _READ_ONLY:
            raise
        stamp = _stamp_of(path)
        if stamp[1] is not None and stamp[1][1]:
            raise WorkspaceReadOnly(
                f"the last changes of {path} are in a log that cannot be read without write access.",
                "Open it for writing once, or give write access to its folder.",
            ) from error
        return _opened(path, "mode=ro&immutable=1"), stamp


def _opened(path: Path, query: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-16384")
        # Without this, numbers past the first corrupt page would be believed.
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute(
            "SELECT 1 FROM sqlite_master"
        ).fetchone()  # makes or reads the log's index
    except BaseException:
        connection.close()
        raise
    return connection


def _stamp_of(path: Path) -> Stamp:
    """Of the database and of its log: inode, size and time of the last change."""
    found: list[tuple[int, int, int] | None] = []
    for file in (path, Path(f"{path}-wal")):
        try:
            status = file.stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    """Errors of SQLite in the words of the error tree; programming errors pass through."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        mapped: UnlearnError
        if code in _FULL:
            mapped = EnvironmentFailure(f"disk full while writing {path}.", "Free some space.")
        elif code in _READ_ONLY:
            mapped = WorkspaceReadOnly(f"{path} cannot be written.", "Give write access.")
        elif code in _BUSY:
            mapped = WorkspaceLocked(f"{path} is locked by another process.", "Try again later.")
        elif code in _BROKEN:
            mapped = Damaged(f"{path} is damaged ({error}).", "Restore a backup.")
        elif code == sqlite3.SQLITE_IOERR:
            mapped = EnvironmentFailure(
                f"cannot read or write {path} ({error}).", "Check the disk."
            )
        else:
            raise
        raise mapped from error
