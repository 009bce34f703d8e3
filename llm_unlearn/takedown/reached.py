"""The record of the states that takedowns reached, in order: what the journal tells others by.

Guarantees: a state is recorded inside the transaction that reaches it, once; where an earlier version made
the journal, the record begins with what that kept.
"""

from __future__ import annotations

import secrets
import sqlite3

REACHED = """
CREATE TABLE IF NOT EXISTS reached (
  position INTEGER PRIMARY KEY, number INTEGER NOT NULL, state TEXT NOT NULL,
  event TEXT NOT NULL UNIQUE
)
"""
INDEX = "CREATE INDEX IF NOT EXISTS reached_number ON reached (number)"
# an earlier version writes takedowns alone
NUMBERS = """
SELECT max(last) FROM (
  SELECT max(number) AS last FROM reached UNION ALL SELECT max(number) FROM takedowns
)
"""
# what a journal knows whose version kept the last state only
LAST = "SELECT number, state, number || '.' || state FROM takedowns ORDER BY number"


def recorded(connection: sqlite3.Connection) -> bool:
    """Whether there is a record."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'reached'"
    return connection.execute(query).fetchone() is not None


def open_record(connection: sqlite3.Connection) -> None:
    """Make the record where an earlier version made the journal, from what that kept."""
    if not recorded(connection):
        connection.execute(REACHED)
        connection.execute(INDEX)
        connection.execute(f"INSERT INTO reached (number, state, event) {LAST}")


def record(connection: sqlite3.Connection, number: int, state: str) -> None:
    """Record a state that is new. Inside the transaction that reaches it, and before it does."""
    open_record(connection)
    query = "SELECT state FROM reached WHERE number = ? ORDER BY position DESC LIMIT 1"
    if connection.execute(query, (number,)).fetchone() != (state,):
        connection.execute(
            "INSERT INTO reached (number, state, event) VALUES (?, ?, ?)",
            (number, state, secrets.token_hex(8)),
        )
