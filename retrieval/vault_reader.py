"""The reading half of the vault: records and their parts in the clear.

Guarantees: every record and part that is given was authenticated; what a destroyed key sealed is not
given; nothing is written, so that any number of processes may read at once. `versions` and `changes`
tell handles by the version of their row, and authenticate none.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Collection, Sequence

from llm_unlearn.documents import normalise
from llm_unlearn.errors import Damaged, KeyDestroyed
from llm_unlearn.retrieval.crypto import keyed_mark, unseal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.rows import COLUMNS, Codes, Domain, Record, Summary

SELECT = " ".join(("SELECT", COLUMNS, "FROM documents"))
_SELECT_PART = "SELECT handle, sealed FROM parts "
BATCH = 500  # marks per query


class VaultReader:
    """The records of one database, as one keyring reads them."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self.database = database
        self.keyring = keyring
        self._ids = keyring.secret("ids")
        self._codes = Codes(keyed_mark(self._ids, "key", "rows"))

    def mark(self, domain: Domain, value: str) -> bytes:
        """The 16-byte keyed mark of an id (the handle), a subject, a source or a content.

        Two spellings of one name have one mark: subjects count as the same whatever their case,
        white space and Unicode form, ids and sources whatever their Unicode form (NFC).
        """
        same = normalise(value) if domain == "subject" else unicodedata.normalize("NFC", value)
        return keyed_mark(self._ids, domain, same)

    def version(self) -> int:
        """A counter that grows with every write to the vault, by any process."""
        return self._summary().version

    def records(
        self,
        *,
        fate: str | None = None,
        states: Collection[str] = ("live",),
        subject: bytes | None = None,
        source: bytes | None = None,
        content: bytes | None = None,
    ) -> list[Record]:
        """The records that match everything given, ordered by handle.

        Raises:
            Damaged: a row fails authentication.
        """
        clauses, values = [f"state IN ({marks(len(states))})"], list[object](states)
        wanted = {"fate": fate, "subject": subject, "source": source, "content": content}
        for column, value in wanted.items():
            if value is not None:
                clauses.append(f"{column}=?")
                values.append(value)
        query = f"{SELECT} WHERE {' AND '.join(clauses)} ORDER BY handle"
        with self.database.reading() as connection:
            return [self._codes.check(row)[0] for row in connection.execute(query, values)]

    def versions(self, fate: str) -> dict[bytes, int]:
        """Of each live record of a fate, the vault version that last wrote its row."""
        query = "SELECT handle, changed FROM documents WHERE fate=? AND state='live'"
        with self.database.reading() as connection:
            return dict(connection.execute(query, (fate,)))

    def changes(self, fate: str, since: int) -> tuple[dict[bytes, int], set[bytes], int]:
        """What vault versions after `since` wrote of a fate, in one reading.

        Returns:
            The live records written (handle to version), the records that are not live any more
            but still there, and how many are live in all. Rows removed show in that number only.
        """
        query = "SELECT handle, changed, state FROM documents WHERE changed>? AND fate=?"
        with self.database.reading() as connection:
            rows = connection.execute(query, (since, fate)).fetchall()
            live = self._summary().count(fate, "live")
        fresh = {handle: changed for handle, changed, state in rows if state == "live"}
        return fresh, {row[0] for row in rows}.difference(fresh), live

    def find(self, handle: bytes) -> Record | None:
        """The record with this handle, in whatever state."""
        return self.find_many([handle]).get(handle)

    def find_many(self, handles: Sequence[bytes]) -> dict[bytes, Record]:
        """The records with these handles, in whatever state; absent ones are left out."""
        with self.database.reading() as connection:
            return {h: record for h, (record, _) in self._rows_of(connection, handles).items()}

    def read(self, record: Record, part: str) -> bytes:
        """One part in the clear.

        Raises:
            KeyDestroyed: the record has been deleted.
            Damaged: the part is missing or not what was written.
        """
        return self.read_many([record], part)[0]

    def read_many(self, records: Sequence[Record], part: str) -> list[bytes]:
        """The same part of many records; raises as `read`."""
        found = self.read_live(records, part)
        for record, data in zip(records, found, strict=True):
            if data is None:
                raise KeyDestroyed(f"the record {record.handle.hex()} has been deleted.")
        return [data for data in found if data is not None]

    def read_live(self, records: Sequence[Record], part: str) -> list[bytes | None]:
        """As `read_many`, with None for records whose key is destroyed."""
        found = self.read_parts(records, (part,))
        return [None if parts is None else parts[0] for parts in found]

    def read_parts(
        self, records: Sequence[Record], names: Sequence[str]
    ) -> list[tuple[bytes, ...] | None]:
        """Several parts of many records at once, None for records whose key is destroyed.

        Raises:
            Damaged: a part is missing or not what was written.
        """
        sealed: list[dict[bytes, bytes]] = [{} for _ in names]
        with self.database.reading() as connection:
            for start in range(0, len(records), BATCH):
                handles = [record.handle for record in records[start : start + BATCH]]
                query = f"{_SELECT_PART} WHERE handle IN ({marks(len(handles))}) AND name=?"
                for name, rows in zip(names, sealed, strict=True):
                    rows.update(connection.execute(query, [*handles, name]))
        keys = self.keyring.keys([record.slot for record in records])
        found: list[tuple[bytes, ...] | None] = []
        for record, key in zip(records, keys, strict=True):
            if key is None:
                found.append(None)
                continue
            parts = []
            for name, rows in zip(names, sealed, strict=True):
                if record.handle not in rows:
                    raise Damaged(
                        f"the record {record.handle.hex()} has no part {name!r}.",
                        "Restore a backup.",
                    )
                parts.append(unseal(key, rows[record.handle], part_aad(record, name)))
            found.append(tuple(parts))
        return found

    def part_names(self, record: Record) -> list[str]:
        """The names of the parts a record has, sorted."""
        query = "SELECT name FROM parts WHERE handle=? ORDER BY name"
        with self.database.reading() as connection:
            return [name for (name,) in connection.execute(query, (record.handle,))]

    def verify_rows(self) -> None:
        """Check every row and the set of rows against their codes; raises `Damaged`."""
        with self.database.reading() as connection:
            rows = [self._codes.check(row) for row in connection.execute(SELECT)]
            written = self._summary()
        found = Summary().after(rows)
        if (found.combined, found.counts) != (written.combined, written.counts):
            raise Damaged(
                f"{self.database.path} holds {sum(found.counts)} records, not the "
                f"{sum(written.counts)} that were written.",
                "Restore a backup.",
            )

    # --- inside

    def _rows_of(
        self, connection: sqlite3.Connection, handles: Sequence[bytes]
    ) -> dict[bytes, tuple[Record, int]]:
        found = {}
        for start in range(0, len(handles), BATCH):
            batch = handles[start : start + BATCH]
            query = f"{SELECT} WHERE handle IN ({marks(len(batch))})"
            for row in connection.execute(query, batch):
                found[bytes(row[0])] = self._codes.check(row)
        return found

    def _summary(self) -> Summary:
        return self._codes.unpack(self.database.value("vault"))


def part_aad(record: Record, part: str) -> bytes:
    """What a part is sealed for: its record, the record's subject, and its own name."""
    return record.handle + record.subject + part.encode()


def marks(n: int) -> str:
    """The places of `n` values in a query."""
    return ",".join("?" * n)
