"""The store: a vault and an index over it; what retrieval searches. Knows no language model.

Guarantees: a search sees every write committed before it by any process, deletions first of all;
its answer is a pure function of (settings, embedder, live documents), equal to that of a store that
never had the deleted ones; groups and filters apply inside the search, so a caller gets a full list
of what they may see and nothing else; a hit's text is decrypted from the vault at the moment of the
answer, so that a destroyed key ends it. Everything on disk is ciphertext. It does not protect the
memory of a running process, which holds vectors and metadata in the clear.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from llm_unlearn.documents import Document
from llm_unlearn.errors import (
    AccessDenied,
    Damaged,
    InputError,
    KeyDestroyed,
    NotFound,
    RecipeMismatch,
    WorkspaceMissing,
)
from llm_unlearn.files import os_errors
from llm_unlearn.retrieval import bars, embedding, parts
from llm_unlearn.retrieval.adding import add_pieces, add_whole
from llm_unlearn.retrieval.audit import check_record
from llm_unlearn.retrieval.backup import backup, restore
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.embedding import Embedder, Floats
from llm_unlearn.retrieval.hits import Hit, read_hits
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.live import Found, LiveIndex
from llm_unlearn.retrieval.lock import WriterLock
from llm_unlearn.retrieval.prepare import Preparer, Span
from llm_unlearn.retrieval.query import Mode, Query, access
from llm_unlearn.retrieval.reranking import Reranker, candidates, rerank
from llm_unlearn.retrieval.roots import RootKey
from llm_unlearn.retrieval.selection import matching
from llm_unlearn.retrieval.settings import StoreSettings
from llm_unlearn.retrieval.vault import Record, Vault
from llm_unlearn.retrieval.where import Where

__all__ = ["Embedder", "Hit", "Store", "Where"]

DATABASE = "workspace.db"


class Store:
    """The retrievable documents of a vault. Thread-safe.

    Standalone, build it with `create` or `open`; inside a workspace, with the workspace's vault.

    Args:
        vault: where the documents live.
        embedder: must have the digest that the store was filled with.
        settings: chunk settings must be those that the store was filled with.
        fate: which records of the vault it serves.

    Raises:
        RecipeMismatch: the vault holds documents made with another embedder or other chunks.
    """

    def __init__(
        self, vault: Vault, embedder: Embedder, settings: StoreSettings, fate: str = "store"
    ) -> None:
        self.vault = vault
        self.embedder = embedder
        self.settings = settings
        self.fate = fate
        self._lock = threading.RLock()
        self._preparer = Preparer(embedder, settings)
        self._closing = ExitStack()
        self._live = self._fresh()
        self._check_recipe()

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
        cls, source: Path, path: Path, keys: Path, embedder: Embedder, root: RootKey | None = None
    ) -> Self:
        """Make the store in `path` from a backup, with the current keys, open for writing.

        Documents deleted or replaced since the backup do not come back (see `backup`).

        Raises:
            InputError: `path` holds a store.
            Damaged, KeysMissing, RecipeMismatch: the backup cannot be used.
        """
        with os_errors(f"write {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with WriterLock(path / "lock"), closing(Keyring.open(keys, root)) as keyring:
            restore(source, path / DATABASE, keyring)
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
            NotFound: no document has this id.
            AccessDenied: it is under a legal hold, or being deleted.
        """
        record = self.vault.find(self.vault.mark("id", document.id))
        if record is None or record.fate != self.fate:
            raise NotFound(f"no document with the id {document.id!r}.", "Add it.")
        if record.state != "live":
            raise AccessDenied(
                f"the document {document.id!r} is {record.state} and cannot be changed.",
                "Release it first." if record.state == "held" else "",
            )
        if ready is None:
            new = self._preparer.record(document, self.fate)
        else:
            new = self._preparer.ready(document, *ready, self.fate)
        self.vault.replace([new])

    def delete(
        self,
        *,
        id: str | None = None,
        subject: str | None = None,
        source: str | None = None,
        where: Where | None = None,
    ) -> int:
        """Delete for good by exactly one of id, subject, source and `where`; how many documents.

        When it returns, no answer, file or copy of the workspace can yield them. Nothing matching
        is not an error: asked twice, it is done once.

        Raises:
            AccessDenied: one of them is under a legal hold; nothing is deleted then.
        """
        found = self._matching(("live", "fenced", "held"), id, subject, source, where)
        if any(record.state == "held" for record in found):
            raise AccessDenied("a document of this request is under a legal hold.", "Release it.")
        handles = [record.handle for record in found]
        if len(handles) > 1:
            # One key is zeroed in one write; several are not, so a kill in between must not leave
            # half of them answering.
            self.vault.set_state(handles, "fenced")
        if handles:
            self.vault.delete(handles)
            with self._lock:
                self._live.forget(handles)
        return len(handles)

    def fence(
        self,
        *,
        id: str | None = None,
        subject: str | None = None,
        source: str | None = None,
        where: Where | None = None,
    ) -> int:
        """Take documents out of every answer, durably, before they are deleted; how many."""
        found = self._matching(("live",), id, subject, source, where)
        self.vault.set_state([record.handle for record in found], "fenced")
        return len(found)

    def hold(
        self,
        *,
        id: str | None = None,
        subject: str | None = None,
        source: str | None = None,
        where: Where | None = None,
    ) -> int:
        """Put documents under a legal hold: kept, never used, not deletable; how many."""
        found = self._matching(("live", "fenced"), id, subject, source, where)
        self.vault.set_state([record.handle for record in found], "held")
        return len(found)

    def release(
        self,
        *,
        id: str | None = None,
        subject: str | None = None,
        source: str | None = None,
        where: Where | None = None,
    ) -> int:
        """End a legal hold: the documents answer again; how many do.

        Those that a takedown reached meanwhile are deleted for good now that they may be.
        """
        found = self._matching(("held",), id, subject, source, where)
        gone = bars.barred(self.vault.database)
        doomed = [record.handle for record in found if record.handle in gone]
        free = [record.handle for record in found if record.handle not in gone]
        self.vault.set_state(free, "live")
        if doomed:
            self.vault.delete(doomed)
            bars.lift(self.vault.database, doomed)
        return len(free)

    def held(self) -> list[str]:
        """The ids under a legal hold, sorted."""
        records = self.vault.records(fate=self.fate, states=("held",))
        metas = self.vault.read_many(records, "meta")
        return sorted(parts.unpack_meta(meta).id for meta in metas)

    # --- searching

    def search(
        self,
        query: str,
        *,
        groups: Collection[str],
        k: int = 5,
        mode: Mode = "dense",
        diversity: float = 0.0,
        where: Where | None = None,
        reranker: Reranker | None = None,
    ) -> list[Hit]:
        """The `k` best chunks that the groups may see, best first.

        Equal scores are ordered by (handle, chunk).

        Args:
            query: the question, embedded as it is.
            groups: the caller's groups.
            k: how many, 1 to 1,000.
            mode: `dense` by cosine; `lexical` by BM25 (`lexical`), only chunks that hold a word of
                the query; `hybrid` by reciprocal rank fusion of both.
            diversity: above 0, choose among the best 10 k by maximal marginal relevance.
            where: which documents may answer, besides what the groups allow.
            reranker: puts the best 4 k (at least 20) in its own order, before they are cut to `k`.

        Raises:
            AccessDenied: `groups` is empty.
            InputError: the query is blank, or a value is out of range.
            Damaged: a document does not decrypt.
        """
        tests = access(groups, where, self.vault.mark)
        if not query.strip():
            raise InputError("the query is empty.", "Ask something.")
        unit = embedding.encode(self.embedder, [query])[0]
        if reranker is None:
            return self._answer(Query(query, unit, k, tests, mode, diversity))
        Query(query, unit, k, tests, mode, diversity)  # so that an error names the caller's k
        hits = self._answer(Query(query, unit, candidates(k), tests, mode, diversity))
        return rerank(reranker, query, hits, k)

    def search_vector(
        self,
        vector: Floats,
        *,
        groups: Collection[str],
        k: int = 5,
        diversity: float = 0.0,
        where: Where | None = None,
        text: str = "",
        mode: Mode = "dense",
    ) -> list[Hit]:
        """As `search`, for a vector (dim,) of any length but zero.

        `lexical` and `hybrid` also need the words of the question in `text`.
        """
        tests = access(groups, where, self.vault.mark)
        unit = embedding.unit(vector, self.embedder.dim)
        if mode != "dense" and not text.strip():
            raise InputError("the query is empty.", "Ask something.")
        return self._answer(Query(text, unit, k, tests, mode, diversity))

    def known(self, *, groups: Collection[str], where: Where | None = None) -> list[parts.Meta]:
        """What is known of every live document that the groups may see, by id; not to be changed.

        Raises:
            AccessDenied: `groups` is empty.
        """
        tests = access(groups, where, self.vault.mark)
        with self._lock:
            self._live.refresh()
            notes = [entry.note for entry in self._live.visible(tests)]
        return sorted((note.meta for note in notes), key=lambda meta: meta.id)

    def get(self, ids: Sequence[str], *, groups: Collection[str]) -> list[Document]:
        """The live documents of these ids that the groups may see, whole, in the order given.

        Raises:
            AccessDenied: `groups` is empty.
            Damaged: a document does not decrypt.
        """
        access(groups, None, self.vault.mark)
        found = (self._read(self.vault.mark("id", id)) for id in ids)
        default = (self.settings.default_group,)
        return [d for d in found if d is not None and set(d.acl or default) & set(groups)]

    def _answer(self, query: Query) -> list[Hit]:
        with self._lock:
            while True:
                self._live.refresh()
                found: list[Found] = []
                try:
                    found = query.find(self._live)
                    return read_hits(self.vault, found)
                except Damaged:
                    # Another process may have deleted between `refresh` and the reading.
                    if self._live.moved():
                        continue
                    if not self._live.drop_destroyed([entry for _, entry, _ in found]):
                        raise

    def nearest(self, vector: Floats, k: int) -> list[tuple[float, Record, int]]:
        """(score, record, chunk number) of the `k` nearest chunks, whoever may see them.

        For routing inside the package; reads no text.
        """
        unit = embedding.unit(vector, self.embedder.dim)
        with self._lock:
            self._live.refresh()
            best = self._live.search(unit, k, {})
            return [(score, entry.note.record, chunk) for score, entry, chunk in best]

    # --- looking at it

    def __len__(self) -> int:
        """Live chunks."""
        with self._lock:
            self._live.refresh()
            return self._live.index.chunks

    def canonical_bytes(self, also: Collection[bytes] = ()) -> bytes:
        """Everything that decides an answer, in canonical order: records, parts, index rows.

        Equal for two stores with the same secrets, settings, embedder and live documents, whatever
        their history. Keys, slots and nonces are not in it.

        Args:
            also: handles of documents out of use; those of this fate count as if they were live.
        """
        if also:
            apart = self._fresh()
            apart.refresh()
            apart.include(also)
            return b"".join((self._preparer.recipe(), *apart.canonical()))
        with self._lock:
            self._live.refresh()
            return b"".join((self._preparer.recipe(), *self._live.canonical()))

    def verify(self) -> None:
        """Check that every record decrypts and parses and that the index equals the vault.

        Raises:
            Damaged: something is not what was written.
        """
        with self._lock:
            self.vault.database.check()
            self.vault.verify_rows()
            self._live.refresh()
            for record in self.vault.records(fate=self.fate, states=("live", "held")):
                check_record(self.vault, self._live.index, record)

    def stats(self) -> dict[str, Any]:
        """Counts and settings, for people: no text in it."""
        with self._lock:
            self._live.refresh()
            counts = {
                state: len(self.vault.records(fate=self.fate, states=(state,)))
                for state in ("live", "fenced", "held")
            }
            return {
                "documents": counts["live"],
                "fenced": counts["fenced"],
                "held": counts["held"],
                "chunks": self._live.index.chunks,
                "subjects": len(self._live.attributes["subject"].values()),
                "bytes": self.vault.database.path.stat().st_size,
                "dim": self.embedder.dim,
                "embedder": self.embedder.digest,
                **self.settings.model_dump(),
            }

    # --- inside

    def _read(self, handle: bytes) -> Document | None:
        while True:
            record = self.vault.find(handle)
            if record is None or record.fate != self.fate or record.state != "live":
                return None
            try:
                return parts.unpack_body(self.vault.read(record, "body"))
            except KeyDestroyed:
                if self.vault.find(handle) == record:
                    return None  # deleted, its row not yet
            except Damaged:
                if self.vault.find(handle) == record:
                    raise  # not because it was replaced or deleted meanwhile

    def _fresh(self) -> LiveIndex:
        settings = self.settings
        return LiveIndex(
            self.vault, self.fate, self.embedder.dim, settings.index, settings.default_group
        )

    def _matching(
        self,
        states: Collection[str],
        id: str | None,
        subject: str | None,
        source: str | None,
        where: Where | None,
    ) -> list[Record]:
        return matching(self.vault, self.fate, states, id, subject, source, where)

    def _check_recipe(self) -> None:
        database, name = self.vault.database, f"recipe:{self.fate}"
        written = database.value(name)
        if written is None and not database.readonly:
            database.set_value(name, self._preparer.recipe())
        elif written is not None and written != self._preparer.recipe():
            raise RecipeMismatch(
                f"{database.path} was filled with another embedder or other chunk settings.",
                "Open it with those, or make a new store.",
            )


def _stored_settings(database: Database) -> StoreSettings:
    stored = database.value("settings")
    try:
        return StoreSettings.model_validate_json(stored or b"")
    except ValidationError as error:
        raise Damaged(f"the settings in {database.path} do not parse.", "Pass them.") from error
