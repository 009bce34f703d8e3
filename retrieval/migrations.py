"""From one format of the database to the next, each step under a name.

Guarantees: a step runs in one transaction together with the new version number: killed, the
database has the old format or the new. Steps run in order, only when the database is opened for
writing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Migration:
    """What turns format `before` into `before` + 1."""

    before: int
    name: str
    apply: Callable[[sqlite3.Connection], None]


def _sign_codes(connection: sqlite3.Connection) -> None:
    """A store by itself keeps its settings; the codes that `signs` replaced had another name."""
    row = connection.execute("SELECT value FROM meta WHERE name='settings'").fetchone()
    if row is None:
        return
    settings = json.loads(row[0])
    if settings.get("index") == "rabitq":
        settings["index"] = "signs"
        written = json.dumps(settings, separators=(",", ":")).encode()
        connection.execute("UPDATE meta SET value=? WHERE name='settings'", (written,))


MIGRATIONS = (Migration(1, "sign-codes", _sign_codes),)
FORMAT = 1 + len(MIGRATIONS)
