"""Transactions, durability settings, refusal of what is not ours, and the lock."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_unlearn.errors import (
    Damaged,
    EnvironmentFailure,
    InputError,
    WorkspaceLocked,
    WorkspaceMissing,
    WorkspaceReadOnly,
    WorkspaceVersion,
)
from llm_unlearn.retrieval import Store
from llm_unlearn.retrieval import database as database_module
from llm_unlearn.retrieval.database import FORMAT, Database
from llm_unlearn.retrieval.lock import WriterLock
from llm_unlearn.retrieval.migrations import MIGRATIONS, Migration


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path / "w.db", create=True) as made:
        yield made


def test_inner_transaction_joins_the_outer(database: Database) -> None:
    def fail() -> None:
        with database.transaction():
            database.set_value("a", b"1")
            with database.transaction():
                database.set_value("b", b"2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert database.value("a") is None
    assert database.value("b") is None


def test_after_commit_waits_for_the_outermost_and_dies_with_a_rollback(database: Database) -> None:
    ran: list[str] = []
    with database.transaction():
        with database.transaction():
            database.after_commit(lambda: ran.append("inner"))
        assert ran == []
    assert ran == ["inner"]

    def fail() -> None:
        with database.transaction():
            database.after_commit(lambda: ran.append("never"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.transaction():
        database.set_value("a", b"1")
    assert ran == ["inner"]


def test_change_moves_with_every_commit_by_anyone(database: Database) -> None:
    seen = [database.change()]
    database.set_value("a", b"1")
    seen.append(database.change())
    with Database.open(database.path) as other:
        other.set_value("b", b"1")
    seen.append(database.change())
    assert len(set(seen)) == 3
    assert database.change() == seen[-1]


def test_erase_journal_leaves_no_byte(database: Database) -> None:
    needle = os.urandom(64)
    database.set_value("a", needle)
    assert database.erase_journal()
    assert needle in database.path.read_bytes()
    with database.transaction() as connection:
        connection.execute("DELETE FROM meta WHERE name='a'")
    assert database.erase_journal()
    for path in database.path.parent.iterdir():
        assert needle not in path.read_bytes()


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceMissing):
        Database.open(tmp_path / "none.db")
    for name, content in (("empty.db", b""), ("text.db", b"hello" * 2000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Damaged):
            Database.open(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE t (a)")
    foreign.close()
    with pytest.raises(Damaged):
        Database.open(tmp_path / "foreign.db")
    with pytest.raises(InputError):
        Database.open(tmp_path / "foreign.db", create=True)


def test_newer_format_is_refused(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(f"PRAGMA user_version={FORMAT + 1}")
    with pytest.raises(WorkspaceVersion, match=str(FORMAT + 1)):
        Database.open(database.path)


def test_reader_cannot_write_and_sees_commits(database: Database) -> None:
    with Database.open(database.path, readonly=True) as reader:
        with pytest.raises(WorkspaceReadOnly):
            reader.set_value("a", b"1")
        before = reader.change()
        database.set_value("a", b"1")
        assert reader.change() != before
        assert reader.value("a") == b"1"


def test_full_disk_leaves_the_database_as_it_was(database: Database) -> None:
    """`max_page_count` makes SQLite answer as it does on a full disk."""
    database.set_value("kept", b"1")
    with database.reading() as connection:
        pages: Any = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(EnvironmentFailure, match="disk full"):
        database.set_value("big", bytes(100_000))
    assert database.value("kept") == b"1"
    assert database.value("big") is None
    database.check()


def test_one_writer(tmp_path: Path) -> None:
    with WriterLock(tmp_path / "lock"), pytest.raises(WorkspaceLocked, match=str(os.getpid())):
        WriterLock(tmp_path / "lock").acquire()
    with WriterLock(tmp_path / "lock"):
        pass


def test_a_lock_that_cannot_be_marked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("ftruncate", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(EnvironmentFailure, match="disk full"):
                WriterLock(tmp_path / "lock").acquire()
        with WriterLock(tmp_path / "lock"):
            pass


@contextlib.contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    """The folder as somebody sees it who may read everything in it and write nothing."""
    others = [path for path in folder.iterdir() if path.stat().st_mode & 0o400]
    for path in others:
        path.chmod(0o444)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        for path in others:
            path.chmod(0o600)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may come to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("closed", [True, False])
def test_a_reader_without_write_access_sees_commits(shared: Path, closed: bool) -> None:
    path = shared / "w.db"
    with Database.open(path, create=True) as writer:
        writer.set_value("a", b"1")
    with _unwritable(shared):
        reader = Database.open(path, readonly=True)
        seen = [reader.change(), reader.change()]
        assert reader.value("a") == b"1"
    assert len(set(seen)) == 1
    for value in (b"2", b"3"):
        writer = Database.open(path)
        writer.set_value("a", value)
        if closed:
            writer.close()
        with _unwritable(shared):
            seen.append(reader.change())
            assert reader.value("a") == value
            assert Database.open(path, readonly=True).value("a") == value
        writer.close()
    assert len(set(seen)) == 3
    reader.close()


def test_changes_that_a_reader_cannot_see_are_not_passed_over(shared: Path) -> None:
    """They are in a log that this user may not read."""
    Database.open(shared / "w.db", create=True).close()
    with _unwritable(shared):
        reader = Database.open(shared / "w.db", readonly=True)
        assert reader.value("a") is None
    with Database.open(shared / "w.db") as writer:
        writer.set_value("a", b"1")
        (shared / "w.db-wal").chmod(0)
        with _unwritable(shared):
            with pytest.raises(WorkspaceReadOnly, match="log that cannot be read"):
                Database.open(shared / "w.db", readonly=True)
            for look in (reader.change, lambda: reader.value("a")):
                with pytest.raises(WorkspaceReadOnly, match="log that cannot be read"):
                    look()
    with _unwritable(shared):
        assert reader.value("a") == b"1"  # the writer has closed: nothing is in a log
    reader.close()


def test_an_older_format_is_brought_up_step_by_step(tmp_path: Path, tools: Any) -> None:
    """A store of format 1 that names the codes of its time opens with those that replaced them."""
    place = (tmp_path / "s", tmp_path / "k", tools.Embedder())
    with Store.create(*place, tools.settings) as store:
        store.add([tools.document(1)])
        with store.vault.database.transaction() as connection:
            old = store.settings.model_dump_json().replace("signs", "rabitq").encode()
            connection.execute("UPDATE meta SET value=? WHERE name='settings'", (old,))
            connection.execute("PRAGMA user_version=1")
    with pytest.raises(WorkspaceVersion, match=r"older format 1\. Open it for writing once"):
        Store.open(*place)
    with Store.open(*place, write=True) as store:
        assert store.settings == tools.settings
    raw = sqlite3.connect(tmp_path / "s" / "workspace.db")
    assert raw.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    assert (
        b"rabitq" not in raw.execute("SELECT value FROM meta WHERE name='settings'").fetchone()[0]
    )
    raw.close()
    with Store.open(*place) as store:
        assert len(store.search("record", groups=["staff"]))
    assert [step.before for step in MIGRATIONS] == list(range(1, FORMAT))
    assert len({step.name for step in MIGRATIONS}) == len(MIGRATIONS)


def test_a_migration_that_is_killed_leaves_the_old_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database.open(tmp_path / "one.db", create=True).close()
    raw = sqlite3.connect(tmp_path / "one.db")
    raw.execute("PRAGMA user_version=1")
    raw.execute("INSERT INTO meta VALUES ('settings', '{}')")
    raw.commit()
    raw.close()

    def stops(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM meta")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", (Migration(1, "stops", stops),))
        with pytest.raises(KeyboardInterrupt):
            Database.open(tmp_path / "one.db")
    raw = sqlite3.connect(tmp_path / "one.db")
    assert raw.execute("PRAGMA user_version").fetchone() == (1,)
    assert raw.execute("SELECT value FROM meta WHERE name='settings'").fetchone() == ("{}",)
    raw.close()
    Database.open(tmp_path / "one.db").close()
