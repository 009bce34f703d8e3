"""Records that may not answer again: taken down while a legal hold kept them.

Guarantees: whoever ends the hold through `Store.release` destroys a barred record in place of
serving it; a bar is durable in the transaction that sets it, and goes with its record. It holds
keyed marks only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from llm_unlearn.retrieval.database import Database

_TABLE = """
CREATE TABLE IF NOT EXISTS bars (
  handle BLOB PRIMARY KEY, request BLOB NOT NULL
) WITHOUT ROWID
"""


def add(database: Database, handles: Iterable[bytes], request: bytes) -> None:
    """Bar records for a request; one that is barred already stays so. Joins an open transaction."""
    with database.transaction() as connection:
        connection.execute(_TABLE)
        rows = [(handle, request) for handle in handles]
        connection.executemany("INSERT OR IGNORE INTO bars VALUES (?, ?)", rows)


def lift(database: Database, handles: Iterable[bytes]) -> None:
    """Forget the bars of records that are gone."""
    with database.transaction() as connection:
        if _there(connection):
            rows = [(handle,) for handle in handles]
            connection.executemany("DELETE FROM bars WHERE handle = ?", rows)


def drop(database: Database, request: bytes) -> None:
    """Forget the bars that a request set. Joins an open transaction."""
    with database.transaction() as connection:
        if _there(connection):
            connection.execute("DELETE FROM bars WHERE request = ?", (request,))


def barred(database: Database) -> frozenset[bytes]:
    """The handles of barred records."""
    with database.reading() as connection:
        if not _there(connection):
            return frozenset()
        return frozenset(
            bytes(handle) for (handle,) in connection.execute("SELECT handle FROM bars")
        )


def _there(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'bars'"
    return connection.execute(query).fetchone() is not None
