"""The store: a vault and an index over it; what retrieval searches. Knows no language model.

Guarantees: searches are what `store_reader` says; what adds or replaces documents is whole or not
at all (`extend`: each piece of it); what `delete` deleted can be had from no answer, file or copy of
the workspace; everything on disk is ciphertext.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self, Unpack

from pydantic import ValidationError

from llm_unlearn.documents import Document
from llm_unlearn.errors import AccessDenied, Damaged, InputError, NotFound, WorkspaceMissing
from llm_unlearn.files import os_errors
from llm_unlearn.retrieval import bars, fences
from llm_unlearn.retrieval.adding import add_pieces, add_whole
from llm_unlearn.retrieval.backup import backup, restore
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.embedding import Embedder, Floats
from llm_unlearn.retrieval.hits import Hit
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.lock import WriterLock
from llm_unlearn.retrieval.prepare import Span
from llm_unlearn.retrieval.roots import RootKey
from llm_unlearn.retrieval.selection import Which, matching
from llm_unlearn.retrieval.settings import StoreSettings
from llm_unlearn.retrieval.store_reader import StoreReader
from llm_unlearn.retrieval.vault import Record, Vault
from llm_unlearn.retrieval.where import Where

__all__ = ["Embedder", "Hit", "Store", "Where"]

DATABASE = "workspace.db"


class Store(StoreReader):
    """The retrievable documents of a vault, for reading and writing. Thread-safe.

    Standalone, build it with `create` or `open`; inside a workspace, with the workspace's vault.
    Arguments and errors are `StoreReader`'s.
    """

    def __init__(
        self, vault: Vault, embedder: Embedder, settings: StoreSettings, fate: str = "store"
    ) -> None:
        super().__init__(vault, embedder, settings, fate)
        self._closing = ExitStack()

    # --- standalone

    @classmethod
    def create(
        cls,
        path: Path,
        keys: Path,
        embedder: Embedder,
        settings: StoreSettings | None = None,
        root: RootKey | None = None,
    ) -> Self:
        """Make an empty store in the directory `path` with its keys in `keys`, open for writing.

        Raises:
            InputError: one of the two is there already, or `keys` lies inside `path`.
        """
        if keys.resolve().is_relative_to(path.resolve()):
            raise InputError(f"the keys {keys} would lie inside {path}.", "Keep them apart.")
        with os_errors(f"write {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(WriterLock(path / "lock"))
            if (path / DATABASE).exists():
                raise InputError(f"{path} holds a store already.", "Open it.")
            keyring = stack.enter_context(closing(Keyring.create(keys, root)))
            database = stack.enter_context(Database.open(path / DATABASE, create=True))
            chosen = settings or StoreSettings()
            database.set_value("settings", chosen.model_dump_json().encode())
            store = cls(Vault(database, keyring), embedder, chosen)
            store._closing = stack.pop_all()
        return store

    @classmethod
    def open(
        cls,
        path: Path,
        keys: Path,
        embedder: Embedder,
        settings: StoreSettings | None = None,
        root: RootKey | None = None,
        *,
        write: bool = False,
    ) -> Self:
        """Open a store, for reading or as its one writer; `settings` default to the stored ones.

        A writer first finishes what a killed one left: fenced documents are deleted, orphans swept.

        Raises:
            WorkspaceMissing, WorkspaceLocked, WorkspaceReadOnly, WorkspaceVersion, KeysMissing,
            Damaged, RecipeMismatch: the store cannot be used as asked.
        """
        if not (path / DATABASE).is_file():
            raise WorkspaceMissing(f"no store in {path}.", "Create it, or give its directory.")
        with ExitStack() as stack:
            if write:
                stack.enter_context(WriterLock(path / "lock"))
            database = stack.enter_context(Database.open(path / DATABASE, readonly=not write))
            keyring = stack.enter_context(closing(Keyring.open(keys, root)))
            vault = Vault(database, keyring)
            store = cls(vault, embedder, settings or _stored_settings(database))
            if write:
                vault.sweep()
                fenced = vault.records(fate=store.fate, states=("fenced",))
                vault.delete([record.handle for record in fenced])
            store._closing = stack.pop_all()
        return store

    def backup(self, target: Path) -> None:
        """Copy the store to the new file `target` while it is in use: ciphertext, no key."""
        backup(self.vault.database, target)

    @classmethod
    def restore(
        cls,
        source: Path,
        path: Path,
        keys: Path,
        embedder: Embedder,
        root: RootKey | None = None,
        *,
        current: Path | None = None,
    ) -> Self:
        """Make the store in `path` from a backup, with the current keys, open for writing.

        Documents deleted or replaced since the backup do not come back (see `backup`).

        Args:
            current: the `workspace.db` in use until now, moved away. Fences and holds set or ended
                since the backup are in it only: without it every document is as it was then.

        Raises:
            InputError: `path` holds a store.
            NotFound, WorkspaceMissing: there is no such backup, or no such `current`.
            Damaged, KeysMissing, RecipeMismatch: the backup cannot be used.
        """
        with os_errors(f"write {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with WriterLock(path / "lock"), closing(Keyring.open(keys, root)) as keyring:
            restore(source, path / DATABASE, keyring, current)
        return cls.open(path, keys, embedder, root=root, write=True)

    def close(self) -> None:
        """Forget the index; a standalone store also closes its files and gives up its lock."""
        with self._lock:
            self._live = self._fresh()
            self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing

    def prepare(self, document: Document, *, rule: str = "", reason: str = "") -> dict[str, bytes]:
        """Chunk, embed and pack one document: its vault parts.

        A pure function of document, embedder and chunk settings.

        Raises:
            InputError: the embedder returns something else than unit vectors.
        """
        return self._preparer.parts(document, rule, reason)

    def add(self, documents: Iterable[Document]) -> int:
        """Add new documents, all or none; how many.

        They are embedded one by one and staged in batches, so `documents` may be a long stream.

        Raises:
            InputError: an id is there already, or comes twice. Nothing is added then.
        """
        records = (self._preparer.record(document, self.fate) for document in documents)
        return add_whole(self.vault, records)

    def add_ready(self, documents: Iterable[tuple[Document, Sequence[Span], Floats]]) -> int:
        """As `add`, for chunks and vectors made elsewhere with this store's embedder.

        Each document comes with the character spans of its chunks and their unit vectors, (n, dim)
        float32.

        Raises:
            InputError: as `add`; also when spans and vectors do not fit the document or each other.
        """
        return add_whole(self.vault, (self._preparer.ready(*item, self.fate) for item in documents))

    def extend(
        self, documents: Iterable[Document], progress: Callable[[int], None] | None = None
    ) -> int:
        """As `add`, but piece by piece: what was added before a kill or an error stays.

        Documents that are there already, the same in everything, are passed over and not embedded
        again; so after a kill the same call goes on where it was.

        Args:
            progress: called with the number of documents seen so far.

        Returns:
            How many were added.

        Raises:
            InputError: an id is there with other words or other data; the pieces before it stay.
        """
        return add_pieces(self.vault, documents, self._preparer, self.fate, progress)

    def update(
        self, document: Document, ready: tuple[Sequence[Span], Floats] | None = None
    ) -> None:
        """Replace the document of the same id; no chunk of the old one stays.

        Args:
            document: the new one.
            ready: its chunks and vectors, if they were made elsewhere (see `add_ready`).

        Raises:
            InputError: `ready` does not fit the document.
            NotFound: no document has this id, or another has taken its place meanwhile.
            AccessDenied: it is under a legal hold, or being deleted.
        """
        record = self._changeable(document.id)
        if ready is None:
            new = self._preparer.record(document, self.fate)
        else:
            new = self._preparer.ready(document, *ready, self.fate)

        def unchanged() -> None:
            if self._changeable(document.id).slot != record.slot:
                raise NotFound(
                    f"the document {document.id!r} was replaced while the new one was prepared.",
                    "Look at what is there now, and update that.",
                )

        self.vault.replace([new], check=unchanged)

    def _changeable(self, id: str) -> Record:
        record = self.vault.find(self.vault.mark("id", id))
        if record is None or record.fate != self.fate:
            raise NotFound(f"no document with the id {id!r}.", "Add it.")
        if record.state != "live":
            raise AccessDenied(
                f"the document {id!r} is {record.state} and cannot be changed.",
                "Release it first." if record.state == "held" else "",
            )
        return record

    def delete(self, **which: Unpack[Which]) -> int:
        """Delete for good by exactly one of id, subject, source and `where`; how many documents.

        When it returns, no answer, file or copy of the workspace can yield them. Nothing matching
        is not an error: asked twice, it is done once.

        Raises:
            AccessDenied: one of them is under a legal hold; nothing is deleted then.
        """
        found = self._matching("live", "fenced", "held", **which)
        if len(found) > 1:
            # One key is zeroed in one write; several are not, so a kill in between must not leave
            # half of them answering.
            with self.vault.database.transaction():
                self.vault.set_state(self._deletable(found), "fenced")
        if not found:
            return 0
        # The keys go inside the transaction, so that no hold comes between.
        with self.vault.database.transaction(durable=False):
            handles = self._deletable(found)
            self.vault.delete(handles)
        with self._lock:
            self._live.forget(handles)
        return len(handles)

    def _deletable(self, found: Iterable[Record]) -> list[bytes]:
        now = self._still(found, "live", "fenced", "held")
        if any(record.state == "held" for record in now):
            raise AccessDenied("a document of this request is under a legal hold.", "Release it.")
        return [record.handle for record in now]

    def fence(self, **which: Unpack[Which]) -> int:
        """Take documents out of every answer, durably, before they are deleted; how many."""
        found = self._matching("live", **which)
        with self.vault.database.transaction():
            live = self._still(found, "live")
            self.vault.set_state([record.handle for record in live], "fenced")
        return len(live)

    def hold(self, **which: Unpack[Which]) -> int:
        """Put documents under a legal hold: kept, never used, not deletable; how many."""
        found = self._matching("live", "fenced", **which)
        database = self.vault.database
        with database.transaction():
            now = self._still(found, "live", "fenced")
            fences.remember(database, [r.handle for r in now if r.state == "fenced"])
            self.vault.set_state([record.handle for record in now], "held")
        return len(now)

    def release(self, **which: Unpack[Which]) -> int:
        """End a legal hold: the documents answer again; how many do.

        Those that were fenced before, or that an open request names, stay fenced. Those that a
        takedown reached meanwhile are deleted for good now that they may be.
        """
        found = self._matching("held", **which)
        database = self.vault.database
        with database.transaction():
            held = [record.handle for record in self._still(found, "held")]
            gone, fenced = bars.barred(database), fences.standing(database)
            doomed = [handle for handle in held if handle in gone]
            back = [handle for handle in held if handle in fenced and handle not in gone]
            free = [handle for handle in held if handle not in gone and handle not in fenced]
            self.vault.set_state(back, "fenced")
            self.vault.set_state(free, "live")
            fences.forget(database, back)
        if doomed:
            self.vault.delete(doomed)
        return len(free)

    def _still(self, found: Iterable[Record], *states: str) -> list[Record]:
        """The records of these ids in one of the states: inside the transaction that acts on it."""
        now = self.vault.find_many([record.handle for record in found]).values()
        return [record for record in now if record.fate == self.fate and record.state in states]

    def _matching(self, *states: str, **which: Unpack[Which]) -> list[Record]:
        return matching(self.vault, self.fate, states, **which)


def _stored_settings(database: Database) -> StoreSettings:
    stored = database.value("settings")
    try:
        return StoreSettings.model_validate_json(stored or b"")
    except ValidationError as error:
        raise Damaged(f"the settings in {database.path} do not parse.", "Pass them.") from error
