"""The vault: documents as ciphertext, each under its own key, deletable for good.

Guarantees: nothing textual is written in the clear (ids, subjects, sources and contents appear as
keyed marks); every row is authenticated, and so is the set of rows, so that a changed, swapped,
lost or forged row is noticed; `delete` destroys the keys first, durably, so that a copy of the
database made before is unreadable too; a killed process leaves every record either before or after
the operation, and `sweep` clears away what is between. It does not hide how many records there are,
how long they are, and which share a subject.

Tables: `documents` (a row per record), `parts` (its sealed parts), `meta['vault']` (version, count
and combined authentication code of the rows).
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from llm_unlearn.documents import normalise
from llm_unlearn.errors import Damaged, InputError, KeyDestroyed, KeysMissing
from llm_unlearn.retrieval import claim
from llm_unlearn.retrieval.crypto import keyed_mark, seal, unseal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.rows import (
    COLUMNS,
    FATES,
    SCHEMA,
    STATES,
    Codes,
    Domain,
    NewRecord,
    Record,
    Summary,
    code_of,
)

__all__ = ["FATES", "STATES", "NewRecord", "Record", "Vault"]

_SELECT = " ".join(("SELECT", COLUMNS, "FROM documents"))
_SELECT_PART = "SELECT handle, sealed FROM parts "
_BATCH = 500  # marks per query


class Vault:
    """The records of one database, opened with one keyring.

    Raises:
        KeysMissing: the keyring belongs to another workspace.
    """

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self.database = database
        self.keyring = keyring
        self._ids = keyring.secret("ids")
        self._codes = Codes(keyed_mark(self._ids, "key", "rows"))
        if not database.readonly and database.value("keyring") is None:
            with database.transaction() as connection:
                for statement in filter(str.strip, SCHEMA.split(";")):
                    connection.execute(statement)
                self._put_summary(Summary())
                database.set_value("keyring", keyring.identity)
        if database.value("keyring") != keyring.identity:
            raise KeysMissing(
                f"the keys in {keyring.directory} are not those of {database.path}.",
                "Give the directory with this workspace's keys.",
            )

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

    # --- writing

    def add(self, records: Sequence[NewRecord], state: str = "live") -> list[bytes]:
        """Seal and keep new records in one transaction; their handles, in the order given.

        Raises:
            InputError: an id is there already (in any state) or comes twice; nothing is added then.
        """
        return self._write(records, state, replacing=False)

    def replace(self, records: Sequence[NewRecord], state: str = "live") -> list[bytes]:
        """As `add`, but a record of the same id is replaced: killed, either the old or the new.

        The old keys are destroyed right after the commit.
        """
        return self._write(records, state, replacing=True)

    def _write(self, records: Sequence[NewRecord], state: str, *, replacing: bool) -> list[bytes]:
        self.database.require_writable()
        _known(state, STATES)
        handles = [self.mark("id", record.id) for record in records]
        if len(set(handles)) < len(handles):
            twice = next(r.id for i, r in enumerate(records) if handles[i] in handles[:i])
            raise InputError(f"the id {twice!r} comes twice.", "Give each document its own id.")
        keys = self.keyring.new_keys(len(records))
        old: list[int] = []
        try:
            with self.database.transaction() as connection:
                present = self._rows_of(connection, handles)
                if present and not replacing:
                    name = next(r.id for r, h in zip(records, handles, strict=True) if h in present)
                    raise InputError(
                        f"a document with the id {name!r} is there already.",
                        "Update it, or delete it first.",
                    )
                old = [record.slot for record, _ in present.values()]
                if present:
                    self._remove(connection, present)
                added = self._insert(connection, records, handles, keys, state)
                self._put_summary(self._summary().after(added, present.values()))
        except BaseException:
            self.keyring.destroy(slot for slot, _ in keys)
            raise
        # Inside a caller's transaction the old keys must live until it commits.
        if old:
            self.database.after_commit(lambda: self.keyring.destroy(old))
        if state != "staged":
            # A log that is empty at rest cannot be cut short unnoticed. Staged rows are lost with
            # their writer anyway.
            self.database.after_commit(self.database.erase_journal)
        return handles

    def _insert(
        self,
        connection: sqlite3.Connection,
        records: Sequence[NewRecord],
        handles: Sequence[bytes],
        keys: Sequence[tuple[int, bytes]],
        state: str,
    ) -> list[tuple[Record, int]]:
        version = self._summary().version + 1
        added, rows, parts = [], [], []
        for new, handle, (slot, key) in zip(records, handles, keys, strict=True):
            _known(new.fate, FATES)
            record = Record(
                handle,
                self.mark("subject", new.subject),
                self.mark("source", new.source),
                self.mark("content", new.content),
                new.fate,
                state,
                new.generation,
                slot,
            )
            row = self._codes.row(record, version)
            added.append((record, code_of(row)))
            rows.append(row)
            parts += [
                (handle, name, seal(key, data, _aad(record, name)))
                for name, data in new.parts.items()
            ]
        connection.executemany("INSERT INTO slots VALUES (?)", [(slot,) for slot, _ in keys])
        connection.executemany("INSERT INTO documents VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
        connection.executemany("INSERT INTO parts VALUES (?,?,?)", parts)
        return added

    def set_state(self, handles: Iterable[bytes], state: str) -> None:
        """Move records to another state in one transaction; unknown handles are passed over."""
        _known(state, STATES)
        with self.database.transaction() as connection:
            self._change_state(connection, self._rows_of(connection, list(handles)), state)

    def promote_staged(self) -> int:
        """Make every staged record live, in one transaction; how many there were."""
        with self.database.transaction() as connection:
            query = f"{_SELECT} WHERE state='staged'"
            rows = [self._codes.check(row) for row in connection.execute(query)]
            self._change_state(connection, {row[0].handle: row for row in rows}, "live")
        return len(rows)

    def _change_state(
        self, connection: sqlite3.Connection, rows: Mapping[bytes, tuple[Record, int]], state: str
    ) -> None:
        before = [row for row in rows.values() if row[0].state != state]
        if not before:
            return
        summary, after, updates = self._summary(), [], []
        for record, _ in before:
            moved = replace(record, state=state)
            row = self._codes.row(moved, summary.version + 1)
            after.append((moved, code_of(row)))
            updates.append((state, row[-2], row[-1], record.handle))
        connection.executemany(
            "UPDATE documents SET state=?, changed=?, mac=? WHERE handle=?", updates
        )
        self._put_summary(summary.after(after, before))
        self.database.after_commit(self.database.erase_journal)

    def delete(self, handles: Iterable[bytes]) -> None:
        """Destroy the keys, durably; then remove rows and parts; then erase the journal.

        From the first step on the records cannot be read by anyone. Unknown handles are passed
        over. Killed between the steps, the next writer's `sweep` removes the rows.
        """
        self.database.require_writable()
        with self.database.reading() as connection:
            rows = self._rows_of(connection, list(handles))
        self.keyring.destroy(record.slot for record, _ in rows.values())
        self.drop_rows(list(rows))

    def drop_rows(self, handles: Sequence[bytes]) -> None:
        """Remove rows whose keys are gone already, and erase the journal; `delete` otherwise."""
        with self.database.transaction(durable=False) as connection:
            rows = self._rows_of(connection, handles)
            self._remove(connection, rows)
            if rows:
                self._put_summary(self._summary().after(removed=rows.values()))
        self.database.after_commit(self.database.erase_journal)

    def _remove(
        self, connection: sqlite3.Connection, rows: Mapping[bytes, tuple[Record, int]]
    ) -> None:
        handles = [(handle,) for handle in rows]
        connection.executemany("DELETE FROM parts WHERE handle=?", handles)
        connection.executemany("DELETE FROM documents WHERE handle=?", handles)
        slots = [(record.slot,) for record, _ in rows.values()]
        connection.executemany("DELETE FROM slots WHERE slot=?", slots)

    def sweep(self, *, quick: bool = False) -> None:
        """Clear away what a killed writer left; for the one writer, when it opens.

        Staged records go, records whose key is destroyed go, and keys that table `slots` does not
        know are destroyed. With `quick` only the keys are made ready for new ones, in a time that does not
        grow with the vault.

        Raises:
            Damaged: rows are missing or changed, or the key file is shorter than the rows say.
            WorkspaceVersion: this is an older copy of the database that the keys belong with.
        """
        self.database.require_writable()
        if not quick:
            self.verify_rows()
        claim.take(self.database, self.keyring)
        self.keyring.recover()
        if quick:
            return
        live = self.keyring.live_slots()
        with self.database.reading() as connection:
            known = {slot for (slot,) in connection.execute("SELECT slot FROM slots")}
        if known and max(known) >= self.keyring.capacity:
            raise Damaged(
                f"the key file in {self.keyring.directory} has been cut short.", "Put it back."
            )
        dead = [
            record.handle
            for record in self.records(states=STATES)
            if record.state == "staged" or record.slot not in live
        ]
        if dead:
            self.delete(dead)
        self.keyring.destroy(live - known)
        self.database.erase_journal()

    # --- reading

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
        clauses, values = [f"state IN ({_marks(len(states))})"], list[object](states)
        wanted = {"fate": fate, "subject": subject, "source": source, "content": content}
        for column, value in wanted.items():
            if value is not None:
                clauses.append(f"{column}=?")
                values.append(value)
        query = f"{_SELECT} WHERE {' AND '.join(clauses)} ORDER BY handle"
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
            for start in range(0, len(records), _BATCH):
                handles = [record.handle for record in records[start : start + _BATCH]]
                query = f"{_SELECT_PART} WHERE handle IN ({_marks(len(handles))}) AND name=?"
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
                parts.append(unseal(key, rows[record.handle], _aad(record, name)))
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
            rows = [self._codes.check(row) for row in connection.execute(_SELECT)]
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
        for start in range(0, len(handles), _BATCH):
            batch = handles[start : start + _BATCH]
            query = f"{_SELECT} WHERE handle IN ({_marks(len(batch))})"
            for row in connection.execute(query, batch):
                found[bytes(row[0])] = self._codes.check(row)
        return found

    def _summary(self) -> Summary:
        return self._codes.unpack(self.database.value("vault"))

    def _put_summary(self, summary: Summary) -> None:
        self.database.set_value("vault", self._codes.pack(summary))


def _aad(record: Record, part: str) -> bytes:
    return record.handle + record.subject + part.encode()


def _marks(n: int) -> str:
    return ",".join("?" * n)


def _known(value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{value!r} is not one of {', '.join(allowed)}.")
