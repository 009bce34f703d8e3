"""Which database the keys belong with: the one that wrote last.

A copy of a database does not know the documents that came after it; writing to it with the keys in
use would take their keys for left over and destroy them. So each writer leaves a fresh random mark
in the database and beside the keys, and one that finds two different marks is refused.

Guarantees: an older copy is refused for writing before anything is touched; a writer killed at any
point leaves marks that the same database passes with. It does not stop reading, and it does not
tell apart two copies of database *and* keys.
"""

from __future__ import annotations

import os

from llm_unlearn.errors import WorkspaceVersion
from llm_unlearn.files import os_errors, write_atomic
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring

_NAME = "writer"
_MARK = 16


def take(database: Database, keyring: Keyring) -> None:
    """Mark the database as the one that writes; for the one writer, when it opens.

    Raises:
        WorkspaceVersion: another database has written with these keys since this one did.
    """
    mine, held = database.value(_NAME) or bytes(_MARK), _held(keyring)
    # Before the first mark there is nothing to compare; killed half-way, there are two to pass with.
    known = [held[at : at + _MARK] for at in range(0, len(held), _MARK)]
    if held and mine not in known:
        raise WorkspaceVersion(
            f"{database.path} is an older copy: the keys in {keyring.directory} have been written "
            "with by another one since, whose documents would be lost.",
            "Open it for reading, or restore it with `Store.restore`; if it is the only one left, "
            f"remove {keyring.directory / _NAME}.",
        )
    fresh = os.urandom(_MARK)
    write_atomic(keyring.directory / _NAME, mine + fresh)
    database.set_value(_NAME, fresh)
    write_atomic(keyring.directory / _NAME, fresh)


def adopt(database: Database, keyring: Keyring) -> None:
    """Make a restored database the one that the keys belong with."""
    held = _held(keyring)
    if held:
        database.set_value(_NAME, held[-_MARK:])


def _held(keyring: Keyring) -> bytes:
    path = keyring.directory / _NAME
    with os_errors(f"read {path}"):
        return path.read_bytes() if path.exists() else b""
