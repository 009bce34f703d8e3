"""The register of copies outside: backups, downstream recipients, caches; and what a takedown owes there.

Guarantees: an entry is sealed under a key of its own; a receipt names it by kind, number and day only. A
takedown lists every registered copy that may hold what it removes or what a legal hold keeps back: as done
where the copy is gone, or holds ciphertext only (whose keys the takedown destroys), else as owed, with the
day it is due. Exported adapters that had learned it are listed too (`exports`).

Not guaranteed: that a copy is what its entry says, or that a copy that nobody registered is known.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from llm_unlearn.documents import normalise
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.exports import Exports, now
from llm_unlearn.retrieval.crypto import seal, unseal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.takedown.receipt import Copy

if TYPE_CHECKING:
    from llm_unlearn.opened import Opened
    from llm_unlearn.takedown.plan import Plan

Kind: TypeAlias = Literal["backup", "recipient", "cache"]
DAYS = 30
_TABLE = """
CREATE TABLE IF NOT EXISTS copies (
  number INTEGER PRIMARY KEY, slot INTEGER NOT NULL, sealed BLOB NOT NULL
)
"""


class Entry(BaseModel):
    """One registered copy.

    Attributes:
        where: where it is, or who has it.
        subjects: what it may hold; empty means anything.
        sealed: it holds ciphertext of this workspace, and no keys.
        days: so many days after a takedown it must be gone from there.
        gone: when the operator said that it is no longer there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    kind: Kind
    where: str
    when: str
    subjects: tuple[str, ...] = ()
    sealed: bool = False
    days: int = DAYS
    gone: str | None = None

    @property
    def label(self) -> str:
        """What a receipt calls it: no place, no name."""
        return f"{self.kind} {self.number}, registered {self.when[:10]}"

    def may_hold(self, subjects: Sequence[str]) -> bool:
        """Whether it may hold documents of one of these subjects."""
        mine = {normalise(subject) for subject in self.subjects}
        return not mine or any(normalise(subject) in mine for subject in subjects)


class Copies:
    """The register of one workspace."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring

    def all(self) -> list[Entry]:
        """Every entry, in order.

        Raises:
            Damaged: an entry is not what was written.
        """
        with self._database.reading() as connection:
            if not _there(connection):
                return []
            rows = connection.execute("SELECT number, slot, sealed FROM copies ORDER BY number")
            found = rows.fetchall()
        return [
            Entry.model_validate_json(unseal(self._keyring.key(slot), bytes(sealed), _aad(number)))
            for number, slot, sealed in found
        ]

    def add(
        self,
        kind: Kind,
        where: str,
        *,
        subjects: Sequence[str] = (),
        sealed: bool = False,
        days: int = DAYS,
    ) -> Entry:
        """Register a copy, durably. The caller holds the workspace's lock.

        Raises:
            InputError: `where` is blank, or `days` is below 0.
        """
        if not where.strip() or days < 0:
            raise InputError("A copy needs a place and a number of days from 0 on.")
        number = len(self.all()) + 1
        made = Entry(
            number=number,
            kind=kind,
            where=where,
            when=now(),
            subjects=tuple(subjects),
            sealed=sealed,
            days=days,
        )
        ((slot, key),) = self._keyring.new_keys(1)
        with self._database.transaction() as connection:
            connection.execute(_TABLE)
            connection.execute("INSERT INTO slots (slot) VALUES (?)", (slot,))
            connection.execute(
                "INSERT INTO copies VALUES (?, ?, ?)", (number, slot, _seal(key, made))
            )
        return made

    def settle(self, number: int) -> Entry:
        """Record that a copy is gone.

        Raises:
            NotFound: there is no such entry, or it is gone already.
        """
        found = next((e for e in self.all() if e.number == number and e.gone is None), None)
        if found is None:
            raise NotFound(f"No copy {number} is registered as still there.", "List them first.")
        settled = found.model_copy(update={"gone": now()})
        with self._database.transaction() as connection:
            (slot,) = connection.execute(
                "SELECT slot FROM copies WHERE number = ?", (number,)
            ).fetchone()
            connection.execute(
                "UPDATE copies SET sealed = ? WHERE number = ?",
                (_seal(self._keyring.key(slot), settled), number),
            )
        return settled


def owed_copies(opened: Opened, plan: Plan, today: date | None = None) -> list[Copy]:
    """What a takedown owes elsewhere, and what is done there already."""
    today = today or datetime.now(UTC).date()
    kept = opened.vault.find_many(plan.kept_back).values()
    held = {opened.ledger.entry(record).subject for record in kept}
    subjects = sorted({*held, *(item.subject for item in plan.removed)})
    handles = {handle.hex() for handle in (*plan.handles, *plan.kept_back)}
    deadline = plan.request.deadline

    def due(days: int) -> str:
        day = today + timedelta(days=days)
        # what is overdue already is due today
        return (day if deadline is None else max(today, min(day, deadline))).isoformat()

    found = []
    for export in Exports(opened.database, opened.keyring).all():
        if not handles.isdisjoint(export.handles):
            done = export.gone is not None
            found.append(_copy("export", export.label, done, due(DAYS)))
    for entry in Copies(opened.database, opened.keyring).all():
        if entry.may_hold(subjects):
            done = entry.sealed or entry.gone is not None
            found.append(_copy(entry.kind, entry.label, done, due(entry.days)))
    return found


def _copy(
    kind: Literal["backup", "export", "recipient", "cache"], label: str, done: bool, due: str
) -> Copy:
    if done:
        return Copy(kind=kind, label=label, status="done")
    return Copy(kind=kind, label=label, status="owed", due=due)


def _seal(key: bytes, entry: Entry) -> bytes:
    return seal(key, entry.model_dump_json().encode(), _aad(entry.number))


def _aad(number: int) -> bytes:
    return b"copy\0" + number.to_bytes(8, "big")


def _there(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'copies'"
    return connection.execute(query).fetchone() is not None
