"""Copies of a store that deletion reaches: ciphertext only, readable with the current keys only.

Guarantees: `backup` copies one consistent state while the store is in use, and no key; `restore`
gives back what the backup holds except every document deleted or replaced since, whose key is gone.
With the database in use until now, its fences, holds and marks are kept too; without it, what was only
fenced or held since the backup answers again. Documents written after the backup are not in it:
restoring means losing them, their keys included, so restore only what is to be used from then on with
these keys.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from llm_unlearn.errors import Damaged, InputError, KeyDestroyed, NotFound
from llm_unlearn.files import os_errors, sync_directory
from llm_unlearn.retrieval import claim, marked
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.vault import STATES, Record, Vault


def backup(database: Database, target: Path) -> None:
    """Copy the database to the new file `target` (mode 0600), durably, while it is in use.

    Raises:
        InputError: `target` is there already.
        EnvironmentFailure: the disk is full.
    """
    if target.exists():
        raise InputError(f"{target} is there already.", "Give a new name.")
    part = target.with_name(f".{target.name}.part")
    with os_errors(f"write {target}"):
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        try:
            copy = sqlite3.connect(part)
            try:
                with database.reading() as connection:
                    connection.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
            finally:
                copy.close()
            _sync(part)
            part.rename(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)


def restore(source: Path, target: Path, keyring: Keyring, current: Path | None = None) -> int:
    """Make `target` a new database from a backup, with the deletions made since replayed.

    Args:
        current: the database in use until now, moved away: each document's state, and what requests
            marked, are taken from it.

    Returns:
        How many records of the backup were deleted since.

    Raises:
        InputError: `target` is there already.
        NotFound: there is no such backup.
        WorkspaceMissing: there is no such database.
        Damaged: the backup, or `current`, is not what was written.
        KeysMissing: the keyring is not that of the backup, or of `current`.
    """
    if target.exists():
        raise InputError(f"{target} is there already.", "Move it away first.")
    if not source.is_file():
        raise NotFound(f"no backup at {source}.", "Give the file that `backup` wrote.")
    part = target.with_name(f".{target.name}.part")
    with os_errors(f"write {target}"):
        for leftover in (part, *(Path(f"{part}{end}") for end in ("-wal", "-shm"))):
            leftover.unlink(missing_ok=True)
        shutil.copyfile(source, part)
        part.chmod(0o600)
    try:
        with Database.open(part) as database:
            vault = Vault(database, keyring)
            vault.verify_rows()
            records = vault.records(states=STATES)
            gone = [record.handle for record in records if _deleted(vault, record)]
            vault.drop_rows(gone)
            if current is not None:
                _take_states(vault, current)
            claim.adopt(database, keyring)
            database.erase_journal()
        _sync(part)
        part.rename(target)
        sync_directory(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return len(gone)


def _take_states(vault: Vault, current: Path) -> None:
    """Give the records of a vault the states and marks that they have in another database."""
    with Database.open(current, readonly=True) as database:
        other = Vault(database, vault.keyring)
        other.verify_rows()
        there = {record.handle: record for record in other.records(states=STATES)}
        same = [
            there[record.handle]
            for record in vault.records(states=STATES)
            if record.handle in there and there[record.handle].slot == record.slot
        ]
        with vault.database.transaction():
            for state in STATES:
                vault.set_state([record.handle for record in same if record.state == state], state)
            marked.copy(database, vault.database, [record.handle for record in same])


def _deleted(vault: Vault, record: Record) -> bool:
    """Whether the record's key is gone: destroyed, or its slot given to another record since.

    In the second case every part fails; one that fails among others is damaged, and so is a slot
    that does not authenticate: that is no deletion.
    """
    try:
        vault.keyring.key(record.slot)
    except KeyDestroyed:
        return True
    failed = []
    names = vault.part_names(record)
    for name in names:
        try:
            if vault.read_live([record], name) == [None]:
                return True
        except Damaged as error:
            failed.append(error)
    if failed and len(failed) < len(names):
        raise failed[0]
    return bool(failed)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
