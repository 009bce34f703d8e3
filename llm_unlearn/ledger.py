"""What the workspace knows of itself and of each document: where it went, by which rule, and when.

Guarantees: every document accepted, or refused by the policy, has an entry, which dies with the
document's key (what a tombstone refuses leaves none); the number of the open generation changes
only when a `train` closes it. Entries are sealed; the few plain settings (format, key identity,
generation, recipe) hold nothing of any text.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_unlearn.errors import NotFound
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.parts import unpack_meta
from llm_unlearn.retrieval.vault import Record, Vault


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one document went: its fate and state, its generation, the rule and its reason."""

    id: str
    subject: str
    fate: str
    state: str
    generation: int
    rule: str
    reason: str


class Ledger:
    """The ledger of one workspace."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    @property
    def generation(self) -> int:
        """The number of the open generation, from 1: what documents ingested now belong to."""
        return int(self._database.value("generation") or b"1")

    def close_generation(self) -> None:
        """What each `train` does first; documents from now on belong to the next generation."""
        with self._database.transaction():
            self._database.set_value("generation", str(self.generation + 1).encode())

    def entry(self, record: Record) -> Entry:
        """The entry of one record.

        Raises:
            KeyDestroyed: the document has been deleted since the record was read.
        """
        meta = unpack_meta(self._vault.read(record, "meta"))
        return Entry(
            id=meta.id,
            subject=meta.subject,
            fate=record.fate,
            state=record.state,
            generation=record.generation,
            rule=meta.rule,
            reason=meta.reason,
        )

    def find(self, document: str) -> Entry:
        """Where a document went, by its id.

        Raises:
            NotFound: no document of that id is held or was refused.
        """
        record = self._vault.find(self._vault.mark("id", document))
        if record is None:
            raise NotFound(
                f"No document {document!r} in this workspace.", "It was never ingested, or deleted."
            )
        return self.entry(record)

    def counts(self) -> dict[str, int]:
        """Number of documents by `fate` for live ones, and by `state` for the others."""
        counts: dict[str, int] = {}
        states = ("live", "fenced", "held")
        for record in self._vault.records(states=states):
            key = record.fate if record.state == "live" else record.state
            counts[key] = counts.get(key, 0) + 1
        return counts
