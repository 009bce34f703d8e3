"""The vault: documents as ciphertext, each under its own key, deletable for good.

Guarantees: nothing textual is written in the clear (ids, subjects, sources and contents appear as
keyed marks); every row is authenticated, and so is the set of rows, so that a changed, swapped,
lost or forged row is noticed; `delete` destroys the keys first, durably, so that a copy of the
database made before is unreadable too; a killed process leaves every record either before or after
the operation, and `sweep` clears away what is between. It does not hide how many records there are,
how long they are, and which share a subject.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from llm_unlearn.errors import Damaged, InputError, KeysMissing
from llm_unlearn.retrieval import claim, marked
from llm_unlearn.retrieval.crypto import seal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.rows import (
    FATES,
    SCHEMA,
    STATES,
    NewRecord,
    Record,
    Summary,
    code_of,
)
from llm_unlearn.retrieval.vault_reader import BATCH, SELECT, VaultReader, marks, part_aad

__all__ = ["FATES", "STATES", "NewRecord", "Record", "Vault"]

_SELECT_SLOT = "SELECT slot FROM slots"


class Vault(VaultReader):
    """The records of one database, opened with one keyring.

    Raises:
        KeysMissing: the keyring belongs to another workspace.
    """

    def __init__(self, database: Database, keyring: Keyring) -> None:
        super().__init__(database, keyring)
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

    def add(self, records: Sequence[NewRecord], state: str = "live") -> list[bytes]:
        """Seal and keep new records in one transaction; their handles, in the order given.

        Raises:
            InputError: an id is there already (in any state) or comes twice; nothing is added then.
        """
        return self._write(records, state, replacing=False)

    def replace(
        self,
        records: Sequence[NewRecord],
        state: str = "live",
        *,
        check: Callable[[], object] | None = None,
    ) -> list[bytes]:
        """As `add`, but a record of the same id is replaced: killed, either the old or the new.

        The old keys are destroyed right after the commit.

        Args:
            check: called first in the transaction that replaces; what it raises prevents that.
        """
        return self._write(records, state, replacing=True, check=check)

    def _write(
        self,
        records: Sequence[NewRecord],
        state: str,
        *,
        replacing: bool,
        check: Callable[[], object] | None = None,
    ) -> list[bytes]:
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
                if check is not None:
                    check()
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
            self._settle([slot for slot, _ in keys], old)
            raise
        # Inside a caller's transaction the old keys must live until it commits.
        if old:
            self.database.after_commit(lambda: self._destroy(old))
        if state != "staged":
            # A log that is empty at rest cannot be cut short unnoticed. Staged rows are lost with
            # their writer anyway.
            self.database.after_commit(self.database.erase_journal)
        return handles

    def _settle(self, new: Sequence[int], old: Sequence[int]) -> None:
        """Destroy the keys that an error left over: an interrupt may come before or after the commit.

        Keys that a caller's transaction may still need are left to `sweep`.
        """
        known = self._named([*new, *old])
        over = (*new, *old) if self.database.at_rest() else new
        self._destroy([slot for slot in over if slot not in known])

    def _destroy(self, slots: Sequence[int]) -> None:
        """Destroy keys whose rows are gone, durably, or were never there."""
        self.keyring.destroy(slots)
        self.keyring.free(slots)

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
                (handle, name, seal(key, data, part_aad(record, name)))
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
            query = f"{SELECT} WHERE state='staged'"
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
        slots = [record.slot for record, _ in rows.values()]
        self.database.after_commit(lambda: self.keyring.free(slots))
        self.database.after_commit(self.database.erase_journal)

    def _remove(
        self, connection: sqlite3.Connection, rows: Mapping[bytes, tuple[Record, int]]
    ) -> None:
        marked.forget(connection, rows)
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
        # A killed deletion leaves rows without a key: a new one there would make them look alive.
        self.keyring.keep(self._named(self.keyring.zero_slots()))
        if quick:
            return
        live = self.keyring.live_slots()
        with self.database.reading() as connection:
            known = {slot for (slot,) in connection.execute(_SELECT_SLOT)}
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
        self._destroy(sorted(live - known))
        self.database.erase_journal()

    def _named(self, slots: Sequence[int]) -> set[int]:
        """Those of the slots that table `slots` knows."""
        named: set[int] = set()
        with self.database.reading() as connection:
            last = connection.execute("SELECT MAX(slot) FROM slots").fetchone()[0]
            asked = [slot for slot in slots if last is not None and slot <= last]
            for start in range(0, len(asked), BATCH):
                batch = asked[start : start + BATCH]
                query = f"{_SELECT_SLOT} WHERE slot IN ({marks(len(batch))})"
                named.update(slot for (slot,) in connection.execute(query, batch))
        return named

    def _put_summary(self, summary: Summary) -> None:
        self.database.set_value("vault", self._codes.pack(summary))


def _known(value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{value!r} is not one of {', '.join(allowed)}.")
