"""Records that some request marked, by the kind of mark: barred, under review, fenced under a hold.

Guarantees: what is marked is durable with the transaction that marks it; the table holds keyed marks only
and is made when it is first needed. A record has one mark of a kind for each request, and they go with
it. Every change joins an open transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from llm_unlearn.retrieval.database import Database

_TABLE = """
CREATE TABLE marked (
  kind TEXT, handle BLOB, request BLOB NOT NULL, PRIMARY KEY (kind, handle, request)
) WITHOUT ROWID
"""


class Marked:
    """The records with one kind of mark."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def add(self, database: Database, handles: Iterable[bytes], request: bytes) -> None:
        """Mark records for a request, whatever marks others set."""
        with database.transaction() as connection:
            _make(connection)
            rows = [(self._kind, handle, request) for handle in handles]
            connection.executemany("INSERT OR IGNORE INTO marked VALUES (?, ?, ?)", rows)

    def remove(self, database: Database, handles: Iterable[bytes]) -> None:
        """Forget the marks of records, whichever request set them."""
        with database.transaction() as connection:
            if _there(connection):
                rows = [(self._kind, handle) for handle in handles]
                connection.executemany("DELETE FROM marked WHERE kind = ? AND handle = ?", rows)

    def unmark(self, database: Database, handles: Iterable[bytes], request: bytes) -> None:
        """Forget the marks that a request set on some records."""
        query = "DELETE FROM marked WHERE kind = ? AND handle = ? AND request = ?"
        with database.transaction() as connection:
            if _there(connection):
                rows = [(self._kind, handle, request) for handle in handles]
                connection.executemany(query, rows)

    def drop(self, database: Database, request: bytes) -> None:
        """Forget the marks that a request set; those of others on the same records stay."""
        with database.transaction() as connection:
            if _there(connection):
                row = (self._kind, request)
                connection.execute("DELETE FROM marked WHERE kind = ? AND request = ?", row)

    def of(self, database: Database, request: bytes) -> set[bytes]:
        """The handles that a request marked."""
        return {handle for handle, by in self._rows(database) if by == request}

    def all(self, database: Database) -> dict[bytes, bytes]:
        """Handle to the mark of a request (of several, the last), in the order of handles."""
        return dict(self._rows(database))

    def _rows(self, database: Database) -> list[tuple[bytes, bytes]]:
        query = "SELECT handle, request FROM marked WHERE kind = ? ORDER BY handle, request"
        with database.reading() as connection:
            if not _there(connection):
                return []
            rows = connection.execute(query, (self._kind,))
            return [(bytes(handle), bytes(request)) for handle, request in rows]


def forget(connection: sqlite3.Connection, handles: Iterable[bytes]) -> None:
    """Forget every mark of records; for the transaction that removes them."""
    if _there(connection):
        query = (
            "SELECT DISTINCT handle FROM marked"  # few are marked, and no key begins with a handle
        )
        there = {bytes(handle) for (handle,) in connection.execute(query)}
        rows = [(handle,) for handle in handles if handle in there]
        connection.executemany("DELETE FROM marked WHERE handle = ?", rows)


def copy(source: Database, target: Database, handles: Iterable[bytes]) -> None:
    """Give records the marks that they have in another database, and only those."""
    known = set(handles)
    with source.reading() as connection:
        there = _there(connection)
        rows = connection.execute("SELECT * FROM marked").fetchall() if there else []
    with target.transaction() as connection:
        forget(connection, known)
        _make(connection)
        rows = [row for row in rows if row[1] in known]
        connection.executemany("INSERT INTO marked VALUES (?, ?, ?)", rows)


def _make(connection: sqlite3.Connection) -> None:
    """Make the table; anew, with all rows, where an earlier version kept one request a record."""
    if not _there(connection):
        connection.execute(_TABLE)
        return
    query = "SELECT pk FROM pragma_table_info('marked') WHERE name = 'request'"
    if connection.execute(query).fetchone() == (0,):
        rows = connection.execute("SELECT kind, handle, request FROM marked").fetchall()
        connection.execute("DROP TABLE marked")
        connection.execute(_TABLE)
        connection.executemany("INSERT INTO marked VALUES (?, ?, ?)", rows)


def _there(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'marked'"
    return connection.execute(query).fetchone() is not None
