"""The store as a Haystack document store (extra `haystack`); its retrievers: `haystack_retrievers`.

Guarantees: a text document comes back as it went in (id, content, meta; its embedding to float32
precision), all of it sealed on disk; what the groups may not see is in no answer and no count of
documents; without groups there is no answer; filters hold before the search; what is deleted is gone
from every file of the store. A document without an embedding is cut into chunks and embedded by the
store's own embedder, so that it is found too, and comes back without one.

Does not guarantee: scores that documents bring are not kept; documents are returned by id, not in
the order of writing, which would be history; blobs and sparse embeddings are refused. Ids that
Haystack makes are plain hashes of the text: they are sealed here, whoever logs them elsewhere logs
a hash.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from llm_unlearn.documents import Document
from llm_unlearn.errors import EnvironmentFailure, InputError, KeyDestroyed, NotFound
from llm_unlearn.integrations.common import (
    FIELDS,
    OutsideEmbedder,
    as_document,
    everything,
    put,
    units,
    whole,
)
from llm_unlearn.retrieval import Hit, Store
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.retrieval.parts import unpack_vectors
from llm_unlearn.retrieval.store import DATABASE
from llm_unlearn.retrieval.where import Where

try:
    from haystack import Document as HaystackDocument
    from haystack import default_from_dict, default_to_dict
    from haystack.core.serialization import component_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy
    from haystack.errors import FilterError
    from haystack.utils.filters import document_matches_filter
except ModuleNotFoundError as missing:
    raise EnvironmentFailure(
        f"{missing.name} is not installed.", "Install llm-unlearn[haystack]."
    ) from missing

__all__ = ["UnlearnDocumentStore"]

_LENGTH = "_embedding_length"  # in a document's metadata: of the embedding that it brought
_WHOLE = {"content", "embedding"}  # fields that a filter needs the document itself for

Filters = dict[str, Any] | None


class UnlearnDocumentStore:
    """A `Store` behind Haystack's interface, opened (or made) at its first use.

    Writing, updating and deleting reach every document, whoever may see it, except `update_by_filter`.

    Args:
        path: the directory of the store.
        keys: the directory of its keys.
        embedder: a text embedder of Haystack: embeds documents that bring no embedding, and BM25's
            queries. Embeddings that documents bring must be of the same model.
        digest: what decides the bits of the vectors, such as a model's name and revision: a store
            opens only with the digest it was filled with.
        groups: on whose behalf documents are read, unless a retriever is told others.
        fields: which keys of a document's meta are also the store's own field of that name, so that
            `acl` (a list of groups) is enforced.
        write: open it for writing; one process at a time can.
    """

    def __init__(
        self,
        path: str,
        keys: str,
        embedder: Any,
        digest: str,
        groups: Collection[str] = (),
        fields: Collection[str] = FIELDS,
        write: bool = True,
    ) -> None:
        self.path = path
        self.keys = keys
        self.embedder = embedder
        self.digest = digest
        self.groups = frozenset(groups)
        self.fields = frozenset(fields)
        self.write = write
        self._store: Store | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> Store:
        """The open store.

        Raises:
            UnlearnError: as `Store.open` and `Store.create`.
        """
        with self._lock:
            if self._store is None:
                outside = OutsideEmbedder(self._embed, self.digest)
                path, keys = Path(self.path), Path(self.keys)
                if self.write and not (path / DATABASE).exists():
                    self._store = Store.create(path, keys, outside)
                else:
                    self._store = Store.open(path, keys, outside, write=self.write)
            return self._store

    def close(self) -> None:
        """Close the files and give up the lock; the next use opens them again."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def to_dict(self) -> dict[str, Any]:
        """How to open this store again: paths and settings, no text and no key."""
        made: dict[str, Any] = default_to_dict(
            self,
            path=self.path,
            keys=self.keys,
            embedder=component_to_dict(self.embedder, "embedder"),
            digest=self.digest,
            groups=sorted(self.groups),
            fields=sorted(self.fields),
            write=self.write,
        )
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Undo `to_dict`; opens nothing yet."""
        made: Self = default_from_dict(cls, data)
        return made

    # --- reading

    def count_documents(self) -> int:
        """How many documents the groups may see."""
        return len(self.store.known(groups=self.groups))

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many of them meet the filters."""
        return len(self._matching(filters, self.groups))

    def filter_documents(self, filters: Filters = None) -> list[HaystackDocument]:
        """Those of them that meet the filters, by id, with the embeddings that they brought.

        Raises:
            FilterError: the filters are malformed or compare what cannot be compared.
        """
        return self._read(self._matching(filters, self.groups), self.groups, embeddings=True)

    # --- writing

    def write_documents(
        self,
        documents: list[HaystackDocument],
        policy: DuplicatePolicy = DuplicatePolicy.NONE,
    ) -> int:
        """Write documents; how many. The policy `NONE` is `FAIL`.

        The new ones are added all or none; each that is overwritten is all or nothing by itself.

        Raises:
            ValueError: it is not a list of documents.
            DuplicateDocumentError: an id is there already, or comes twice; nothing is written then.
            InputError: a document cannot be kept as it is.
            AccessDenied: a document to be overwritten is under a legal hold.
        """
        if not isinstance(documents, list) or not all(
            isinstance(document, HaystackDocument) for document in documents
        ):
            raise ValueError("write_documents needs a list of Haystack's documents.")
        vault = self.store.vault
        chosen: dict[str, HaystackDocument] = {}
        for document in documents:
            there = document.id in chosen or vault.find(vault.mark("id", document.id)) is not None
            if there and policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
                raise DuplicateDocumentError(f"the document {document.id!r} is there already.")
            if not there or policy != DuplicatePolicy.SKIP:
                chosen[document.id] = document
        put(self.store, [self._document(document) for document in chosen.values()])
        return len(documents) if policy == DuplicatePolicy.OVERWRITE else len(chosen)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete for good by ids; those that are not there are no error.

        Raises:
            AccessDenied: one of them is under a legal hold; nothing is deleted then.
        """
        self.store.delete(where=Where(ids=list(document_ids)))

    def delete_all_documents(self) -> None:
        """Delete everything for good; raises `AccessDenied` as `delete_documents`."""
        self.store.delete(where=Where(ids=[meta.id for meta in everything(self.store)]))

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete for good what meets filters on id and meta, whether it answers or not; how many.

        Raises:
            FilterError: no filters, malformed ones, or ones on content or embedding.
            AccessDenied: one of them is under a legal hold; nothing is deleted then.
        """
        if not filters or _WHOLE & set(_roots(filters)):
            raise FilterError("delete_by_filter needs filters, on id and meta alone.")
        found = [
            meta.id for meta in everything(self.store) if _meets(filters, meta.id, meta.metadata)
        ]
        return self.store.delete(where=Where(ids=found))

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set keys of the meta of every document that the groups may see and that meets the filters.

        Each by itself, all or nothing; vectors stay as they are. How many were updated.

        Raises:
            FilterError: as `filter_documents`.
            InputError: the new meta cannot be kept.
        """
        _reserved("the update", meta)
        updated = 0
        for document in self.store.get(self._matching(filters, self.groups), groups=self.groups):
            packed = self._vectors(document.id)
            if packed is None:
                continue  # deleted meanwhile
            own = {name: getattr(document, name) for name in FIELDS}
            own |= {key: value for key, value in meta.items() if key in self.fields}
            metadata = {**document.metadata, **meta}
            made = as_document(document.id, document.content, own, metadata, FIELDS)
            changed = {name: getattr(made, name) for name in ("metadata", *FIELDS)}
            try:
                self.store.update(document.model_copy(update=changed), packed)
            except NotFound:
                continue
            updated += 1
        return updated

    # --- searching

    def search(
        self,
        query: str | None = None,
        query_embedding: Sequence[float] | None = None,
        *,
        top_k: int = 10,
        filters: Filters = None,
        groups: Collection[str] | None = None,
        return_embedding: bool = False,
    ) -> list[HaystackDocument]:
        """The documents nearest to an embedding, or the best by BM25 for words, whole and once each.

        With both, by reciprocal rank fusion. A score is the cosine of the document's best chunk,
        whatever ranked it.

        Raises:
            InputError: neither is given, or `top_k` is out of range.
            AccessDenied: no groups.
        """
        allowed = self.groups if groups is None else groups
        where = Where(ids=self._matching(filters, allowed)) if filters else None
        store = self.store
        if query_embedding is None:

            def find(chunks: int) -> list[Hit]:
                return store.search(
                    query or "", groups=allowed, k=chunks, mode="lexical", where=where
                )
        else:
            vector = np.asarray(query_embedding, np.float32)

            def find(chunks: int) -> list[Hit]:
                return store.search_vector(
                    vector,
                    groups=allowed,
                    k=chunks,
                    where=where,
                    text=query or "",
                    mode="dense" if query is None else "hybrid",
                )

        found = whole(store, find, top_k, allowed)
        made = (self._out(d, embedding=return_embedding, score=score) for d, score in found)
        return [document for document in made if document is not None]

    # --- inside

    def _embed(self, texts: list[str]) -> list[list[float]]:
        if hasattr(self.embedder, "warm_up"):
            self.embedder.warm_up()
        return [self.embedder.run(text=text)["embedding"] for text in texts]

    def _matching(self, filters: Filters, groups: Collection[str]) -> list[str]:
        known = self.store.known(groups=groups)
        if not filters:
            return [meta.id for meta in known]
        if _WHOLE & set(_roots(filters)):
            read = self._read([meta.id for meta in known], groups, embeddings=True)
            return [document.id for document in read if _holds(filters, document)]
        return [meta.id for meta in known if _meets(filters, meta.id, meta.metadata)]

    def _read(
        self, ids: Sequence[str], groups: Collection[str], *, embeddings: bool
    ) -> list[HaystackDocument]:
        found = (self._out(d, embedding=embeddings) for d in self.store.get(ids, groups=groups))
        return [document for document in found if document is not None]

    def _vectors(self, name: str) -> tuple[list[tuple[int, int]], Floats] | None:
        vault = self.store.vault
        record = vault.find(vault.mark("id", name))
        try:
            packed = None if record is None else vault.read(record, "vectors")
        except KeyDestroyed:
            packed = None
        if packed is None:
            return None
        spans, vectors = unpack_vectors(packed)
        return [(int(start), int(end)) for start, end in spans], vectors.astype(np.float32)

    def _document(self, given: HaystackDocument) -> tuple[Document, Floats | None]:
        if given.content is None or given.blob is not None or given.sparse_embedding is not None:
            raise InputError(
                f"the document {given.id!r} has no text, or a blob, or a sparse embedding.",
                "Only text documents can be kept.",
            )
        _reserved(f"the document {given.id!r}", given.meta)
        metadata, vector = dict(given.meta), None
        if given.embedding is not None:
            vector = units([given.embedding])[0]
            metadata[_LENGTH] = float(np.linalg.norm(np.asarray(given.embedding, np.float64)))
        return as_document(given.id, given.content, given.meta, metadata, self.fields), vector

    def _out(
        self, document: Document, *, embedding: bool, score: float | None = None
    ) -> HaystackDocument | None:
        """None if it has been deleted meanwhile."""
        meta = dict(document.metadata)
        length, values = meta.pop(_LENGTH, None), None
        if embedding and isinstance(length, float):
            packed = self._vectors(document.id)
            if packed is None:
                return None
            values = (packed[1][0].astype(np.float64) * length).tolist()
        return HaystackDocument(
            id=document.id, content=document.content, meta=meta, embedding=values, score=score
        )


def _reserved(what: str, meta: Mapping[str, Any]) -> None:
    if _LENGTH in meta:
        raise InputError(f"the meta of {what} use the reserved name {_LENGTH}.", "Rename it.")


def _roots(filters: Any) -> Iterator[str]:
    """The first parts of the fields that filters name."""
    if isinstance(filters, Mapping):
        yield str(filters.get("field", "")).split(".")[0]
        for one in filters.get("conditions") or ():
            yield from _roots(one)


def _meets(filters: dict[str, Any], name: str, metadata: Mapping[str, Any]) -> bool:
    meta = {key: value for key, value in metadata.items() if key != _LENGTH}
    return _holds(filters, HaystackDocument(id=name, meta=meta))


def _holds(filters: dict[str, Any], document: HaystackDocument) -> bool:
    try:
        return bool(document_matches_filter(filters, document))
    except (TypeError, AttributeError) as error:
        raise FilterError(f"the filters cannot be applied: {error}.") from error
