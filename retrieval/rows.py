"""The rows of the vault: what a record is, and the codes that show a row or the set was changed.

Guarantees: `Codes.check` accepts exactly the rows that `Codes.row` made with the same key, and a
`Summary` exactly the one that was packed. It does not read or write anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from llm_unlearn.errors import Damaged
from llm_unlearn.retrieval.crypto import MARK_BYTES, keyed_mark

Domain = Literal["id", "subject", "source", "content"]
FATES = ("store", "corpus", "refused")
STATES = ("staged", "live", "fenced", "held")
COLUMNS = "handle, subject, source, content, fate, state, generation, slot, changed, mac"
Row = tuple[bytes, bytes, bytes, bytes, str, str, int, int, int, bytes]
# a row per record; its sealed parts. `meta['vault']` holds the `Summary` of all rows
SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
  handle BLOB PRIMARY KEY, subject BLOB NOT NULL, source BLOB NOT NULL, content BLOB NOT NULL,
  fate TEXT NOT NULL, state TEXT NOT NULL, generation INTEGER NOT NULL,
  slot INTEGER NOT NULL UNIQUE REFERENCES slots(slot),
  changed INTEGER NOT NULL, mac BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS documents_subject ON documents(subject);
CREATE INDEX IF NOT EXISTS documents_source ON documents(source);
CREATE INDEX IF NOT EXISTS documents_content ON documents(content);
CREATE INDEX IF NOT EXISTS documents_changed ON documents(changed);
CREATE TABLE IF NOT EXISTS parts (
  handle BLOB NOT NULL REFERENCES documents(handle), name TEXT NOT NULL, sealed BLOB NOT NULL,
  UNIQUE (handle, name)
);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A row: marks of 16 bytes, fate, state, generation, and the slot of its data key."""

    handle: bytes
    subject: bytes
    source: bytes
    content: bytes
    fate: str
    state: str
    generation: int
    slot: int


@dataclass(frozen=True, slots=True)
class NewRecord:
    """What `Vault.add` takes: the plain values to be marked, and the parts to be sealed.

    `content` is the normalised text (`documents.normalise`), of which only the mark is kept.
    """

    id: str
    subject: str
    source: str
    content: str
    fate: str
    generation: int
    parts: Mapping[str, bytes]


class Codes:
    """Makes and checks the authentication codes of rows, under one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def row(self, record: Record, changed: int) -> Row:
        """The row of a record that vault version `changed` wrote, in the order of `COLUMNS`."""
        r, numbers = record, (record.generation, record.slot, changed)
        body = b"".join((r.handle, r.subject, r.source, r.content, f"{r.fate} {r.state}".encode()))
        body += b"".join(n.to_bytes(8, "little", signed=True) for n in numbers)
        code = keyed_mark(self._key, "row", body)
        return r.handle, r.subject, r.source, r.content, r.fate, r.state, *numbers, code

    def check(self, values: Sequence[object]) -> tuple[Record, int]:
        """The record of a row as read, and its code as a number; raises `Damaged`."""
        row = cast(Row, values)
        try:
            record = Record(*row[:8])
            # The code joins the marks without their lengths: each must have its own.
            lengths = [len(mark) for mark in row[:4]]
            good = lengths == [MARK_BYTES] * 4 and self.row(record, row[8]) == row
        except (TypeError, AttributeError, OverflowError):  # a column of another type
            good = False
        if not good:
            raise Damaged("a row of the vault fails authentication.", "Restore a backup.")
        return record, code_of(row)

    def pack(self, summary: Summary) -> bytes:
        """The summary with its code."""
        body = summary.version.to_bytes(8, "little") + summary.combined.to_bytes(16, "little")
        body += b"".join(count.to_bytes(8, "little") for count in summary.counts)
        return body + keyed_mark(self._key, "summary", body)

    def unpack(self, data: bytes | None) -> Summary:
        """Undo `pack`; raises `Damaged`."""
        data = data or b""
        counts = [int.from_bytes(data[at : at + 8], "little") for at in range(24, 120, 8)]
        found = Summary(
            int.from_bytes(data[:8], "little"), int.from_bytes(data[8:24], "little"), tuple(counts)
        )
        if self.pack(found) != data:
            raise Damaged("the vault's summary fails authentication.", "Restore a backup.")
        return found


@dataclass(frozen=True, slots=True)
class Summary:
    """What the vault says of its table: a counter of writes, the set of rows, how many of each."""

    version: int = 0
    combined: int = 0  # XOR of the rows' codes
    counts: tuple[int, ...] = (0,) * (len(FATES) * len(STATES))

    def count(self, fate: str, state: str) -> int:
        """How many rows have this fate and state."""
        return self.counts[_cell(fate, state)]

    def after(
        self,
        added: Iterable[tuple[Record, int]] = (),
        removed: Iterable[tuple[Record, int]] = (),
    ) -> Summary:
        """The summary once these rows, each with its code, have come and gone in one write."""
        combined, counts = self.combined, list(self.counts)
        for step, rows in ((1, added), (-1, removed)):
            for record, code in rows:
                combined ^= code
                counts[_cell(record.fate, record.state)] += step
        return Summary(self.version + 1, combined, tuple(counts))


def _cell(fate: str, state: str) -> int:
    return FATES.index(fate) * len(STATES) + STATES.index(state)


def code_of(row: Row) -> int:
    """The authentication code of a row as a number, for the combined code of a set."""
    return int.from_bytes(row[9], "little")
