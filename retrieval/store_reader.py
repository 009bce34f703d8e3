"""The reading half of a store: what a question finds, and what the store says of itself.

Guarantees: a search sees every write committed before it by any process, deletions first of all;
its answer is a pure function of (settings, embedder, live documents), equal to that of a store that
never had the deleted ones; groups and filters apply inside the search, so a caller gets a full list
of what they may see and nothing else; a hit's text is decrypted from the vault at the moment of the
answer, so that a destroyed key ends it. It does not protect the memory of a running process, which
holds vectors and metadata in the clear.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

from llm_unlearn.documents import Document
from llm_unlearn.errors import Damaged, InputError, KeyDestroyed, RecipeMismatch
from llm_unlearn.retrieval import embedding, parts
from llm_unlearn.retrieval.audit import check_record
from llm_unlearn.retrieval.embedding import Embedder, Floats
from llm_unlearn.retrieval.hits import Hit, read_hits
from llm_unlearn.retrieval.live import Found, LiveIndex
from llm_unlearn.retrieval.prepare import Preparer
from llm_unlearn.retrieval.query import Mode, Query, access
from llm_unlearn.retrieval.reranking import Reranker, candidates, rerank
from llm_unlearn.retrieval.settings import StoreSettings
from llm_unlearn.retrieval.vault import Record, Vault
from llm_unlearn.retrieval.where import Where


class StoreReader:
    """What can be asked of a store. Thread-safe.

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
        self._live = self._fresh()
        self._check_recipe()

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

    def held(self) -> list[str]:
        """The ids under a legal hold, sorted."""
        records = self.vault.records(fate=self.fate, states=("held",))
        metas = self.vault.read_many(records, "meta")
        return sorted(parts.unpack_meta(meta).id for meta in metas)

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
