"""Records that some request marked, by the kind of mark: barred, or under review.

Guarantees: what is marked is durable with the transaction that marks it; the table holds keyed marks only
and is made when it is first needed. The first mark of a kind stays. Every change joins an open
transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from llm_unlearn.retrieval.database import Database

_TABLE = """
CREATE TABLE IF NOT EXISTS marked (
  kind TEXT, handle BLOB, request BLOB NOT NULL, PRIMARY KEY (kind, handle)
) WITHOUT ROWID
"""


class Marked:
    """The records with one kind of mark."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def add(self, database: Database, handles: Iterable[bytes], request: bytes) -> None:
        """Mark records for a request; one that is marked already stays so."""
        with database.transaction() as connection:
            connection.execute(_TABLE)
            rows = [(self._kind, handle, request) for handle in handles]
            connection.executemany("INSERT OR IGNORE INTO marked VALUES (?, ?, ?)", rows)

    def remove(self, database: Database, handles: Iterable[bytes]) -> None:
        """Forget the marks of records."""
        with database.transaction() as connection:
            if _there(connection):
                rows = [(self._kind, handle) for handle in handles]
                connection.executemany("DELETE FROM marked WHERE kind = ? AND handle = ?", rows)

    def drop(self, database: Database, request: bytes) -> None:
        """Forget the marks that a request set."""
        with database.transaction() as connection:
            if _there(connection):
                row = (self._kind, request)
                connection.execute("DELETE FROM marked WHERE kind = ? AND request = ?", row)

    def all(self, database: Database) -> dict[bytes, bytes]:
        """Handle to the mark of the request, for every marked record, in the order of handles."""
        query = "SELECT handle, request FROM marked WHERE kind = ? ORDER BY handle"
        with database.reading() as connection:
            if not _there(connection):
                return {}
            rows = connection.execute(query, (self._kind,))
            return {bytes(handle): bytes(request) for handle, request in rows}


def _there(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'marked'"
    return connection.execute(query).fetchone() is not None
