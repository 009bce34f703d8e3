"""Documents that wait for a person: possible copies, fenced until somebody has looked at them.

Guarantees: a document is put under review in the transaction that fences it, and leaves review in the
one that frees it; the table holds keyed marks only. What to do with it is decided by `takedown review`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from llm_unlearn.retrieval.database import Database

_TABLE = """
CREATE TABLE IF NOT EXISTS reviews (
  handle BLOB PRIMARY KEY, request BLOB NOT NULL
) WITHOUT ROWID
"""


def add(database: Database, handles: Iterable[bytes], request: bytes) -> None:
    """Put documents under review for a request. Joins an open transaction."""
    with database.transaction() as connection:
        connection.execute(_TABLE)
        rows = [(handle, request) for handle in handles]
        connection.executemany("INSERT OR IGNORE INTO reviews VALUES (?, ?)", rows)


def close(database: Database, handles: Iterable[bytes]) -> None:
    """End the review of documents. Joins an open transaction."""
    with database.transaction() as connection:
        if _there(connection):
            rows = [(handle,) for handle in handles]
            connection.executemany("DELETE FROM reviews WHERE handle = ?", rows)


def under_review(database: Database) -> dict[bytes, bytes]:
    """Handle to the mark of the request, for every document under review."""
    with database.reading() as connection:
        if not _there(connection):
            return {}
        rows = connection.execute("SELECT handle, request FROM reviews ORDER BY handle")
        return {bytes(handle): bytes(request) for handle, request in rows}


def _there(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'reviews'"
    return connection.execute(query).fetchone() is not None
