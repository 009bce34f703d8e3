"""The store as a LangChain vector store and retriever (extra `langchain`).

Guarantees: a LangChain document comes back as it went in (id, text, metadata), all of it sealed on
disk; what the groups may not see is in no answer, not even by id; without groups there is no answer.
A text longer than a chunk is found by its best chunk and comes back whole, once. It does not know
more than the store: metadata must be JSON, and who else calls `embeddings` sees the texts.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ConfigDict
from tokenizers import Tokenizer

from llm_unlearn.documents import Document
from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.integrations.common import FIELDS, OutsideEmbedder, as_document, put, whole
from llm_unlearn.retrieval import Hit, Store, StoreSettings
from llm_unlearn.retrieval.embedding import Embedder
from llm_unlearn.retrieval.where import Where

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document as LangChainDocument
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
except ModuleNotFoundError as missing:
    raise EnvironmentFailure(
        f"{missing.name} is not installed.", "Install llm-unlearn[langchain]."
    ) from missing

__all__ = ["LangChainEmbedder", "UnlearnRetriever", "UnlearnVectorStore"]

Mode = Literal["dense", "lexical", "hybrid"]
Filter = Where | Mapping[str, Any] | None  # a mapping is about metadata


class LangChainEmbedder(OutsideEmbedder):
    """LangChain's `Embeddings` as the store's `Embedder`.

    Args:
        embeddings: what turns texts into vectors, of any length but zero.
        digest: what decides the bits of the vectors, such as a model's name and revision. LangChain
            does not know, so it must be said: a store opens only with the digest it was filled with.
        tokenizer: counts the tokens of a chunk; default words and punctuation marks.
    """

    def __init__(
        self, embeddings: Embeddings, *, digest: str, tokenizer: Tokenizer | None = None
    ) -> None:
        self.embeddings = embeddings
        super().__init__(embeddings.embed_documents, digest, tokenizer)


class _Own(Embeddings):
    """The store's own embedder, for LangChain."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]  # alone: neighbours change no bits

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self._embedder.encode([text])[0].tolist()
        return vector


class UnlearnVectorStore(VectorStore):
    """A `Store` behind LangChain's interface; asynchronous methods run in LangChain's executor.

    Args:
        store: an open store; open it for writing to add and delete.
        groups: on whose behalf documents are searched, unless a call says `groups=...`.
        fields: which keys of a document's metadata are also the store's own field of that name, so
            that `delete(where=...)` finds a subject and `acl` (a list of groups) is enforced.
    """

    def __init__(
        self, store: Store, *, groups: Collection[str] = (), fields: Collection[str] = FIELDS
    ) -> None:
        self.store = store
        self.groups = frozenset(groups)
        self.fields = frozenset(fields)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[Any, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: Path | None = None,
        keys: Path | None = None,
        digest: str = "",
        groups: Collection[str] = (),
        settings: StoreSettings | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a new store in `path`, with its keys in `keys`, and add texts to it.

        Raises:
            InputError: `path`, `keys` or `digest` (see `LangChainEmbedder`) is missing, or taken.
        """
        if path is None or keys is None or not digest:
            raise InputError("path, keys and digest are needed.", "Say where the store goes.")
        embedder = LangChainEmbedder(embedding, digest=digest)
        made = cls(Store.create(path, keys, embedder, settings), groups=groups, **kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @property
    def embeddings(self) -> Embeddings:
        """What embeds the texts."""
        embedder = self.store.embedder
        return embedder.embeddings if isinstance(embedder, LangChainEmbedder) else _Own(embedder)

    # --- writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[Any, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those whose ids are there; their ids.

        The new ones are added all or none; each replacement is all or nothing by itself.

        Raises:
            InputError: lengths differ, or a text, an id or its metadata cannot be kept as it is.
            AccessDenied: a document to be replaced is under a legal hold.
        """
        given = list(texts)
        named = list(ids) if ids is not None else [None] * len(given)
        known = metadatas if metadatas is not None else [{} for _ in given]
        if not len(given) == len(named) == len(known):
            raise InputError(
                f"{len(given)} texts, {len(known)} metadatas and {len(named)} ids were given.",
                "Give as many of each.",
            )
        names = [name if name is not None else str(uuid.uuid4()) for name in named]
        documents = {
            name: self._document(name, text, metadata)
            for name, text, metadata in zip(names, given, known, strict=True)
        }
        put(self.store, [(document, None) for document in documents.values()])
        return names

    def delete(
        self, ids: list[str] | None = None, *, where: Where | None = None, **kwargs: Any
    ) -> bool:
        """Delete for good, by ids or by a condition; ids that are not there are no error.

        Raises:
            InputError: neither or both were given. (Everything is never deleted by omission.)
            AccessDenied: one of them is under a legal hold; nothing is deleted then.
        """
        if (ids is None) == (where is None):
            raise InputError("give ids or where to delete by.", "One of them.")
        self.store.delete(where=where if ids is None else Where(ids=ids))
        return True

    # --- searching

    def get_by_ids(
        self, ids: Sequence[str], /, groups: Collection[str] | None = None
    ) -> list[LangChainDocument]:
        """Those of the documents that are there and that the groups may see."""
        return [_out(d) for d in self.store.get(ids, groups=self._groups(groups))]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Filter = None, **kwargs: Any
    ) -> list[LangChainDocument]:
        """The `k` documents nearest to a query.

        Args:
            query: the question.
            k: how many documents.
            filter: a `Where`, or the metadata that they must have.
            kwargs: `groups`, the caller's groups.
        """
        found = self.similarity_search_with_score(query, k, filter=filter, **kwargs)
        return [document for document, _ in found]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        *,
        filter: Filter = None,
        groups: Collection[str] | None = None,
    ) -> list[tuple[LangChainDocument, float]]:
        """As `similarity_search`, each with the cosine of its best chunk: larger is nearer."""
        vector = self.embeddings.embed_query(query)
        return self._search(vector, k, filter, groups, 0.0)

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        *,
        filter: Filter = None,
        groups: Collection[str] | None = None,
        **kwargs: Any,
    ) -> list[LangChainDocument]:
        """As `similarity_search`, for a vector."""
        return [document for document, _ in self._search(embedding, k, filter, groups, 0.0)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[LangChainDocument]:
        """`k` documents near to a query and unlike each other; 1 for `lambda_mult` is nearness alone.

        The store chooses among the 10 k best chunks, whatever `fetch_k`.
        """
        vector = self.embeddings.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter = None,
        groups: Collection[str] | None = None,
        **kwargs: Any,
    ) -> list[LangChainDocument]:
        """As `max_marginal_relevance_search`, for a vector."""
        found = self._search(embedding, k, filter, groups, 1 - lambda_mult)
        return [document for document, _ in found]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: (1 + cosine) / 2

    # --- inside

    def _groups(self, groups: Collection[str] | None) -> Collection[str]:
        return self.groups if groups is None else groups

    def _search(
        self,
        vector: list[float],
        k: int,
        filter: Filter,
        groups: Collection[str] | None,
        diversity: float,
    ) -> list[tuple[LangChainDocument, float]]:
        query = np.asarray(vector, np.float32)
        allowed = self._groups(groups)

        def find(chunks: int) -> list[Hit]:
            return self.store.search_vector(
                query, groups=allowed, k=chunks, diversity=diversity, where=_where(filter)
            )

        return [(_out(d), score) for d, score in whole(self.store, find, k, allowed)]

    def _document(self, name: str, text: str, metadata: Mapping[Any, Any]) -> Document:
        return as_document(name, text, metadata, metadata, self.fields)


class UnlearnRetriever(BaseRetriever):
    """The store as a retriever, with keyword and hybrid search.

    Args:
        vector_store: what to search.
        groups: the caller's groups.
        k: how many documents.
        mode: `dense`, `lexical` or `hybrid`.
        where: a `Where`, or the metadata that documents must have.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    vector_store: UnlearnVectorStore
    groups: frozenset[str]
    k: int = 4
    mode: Mode = "hybrid"
    where: Any = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[LangChainDocument]:
        store = self.vector_store.store

        def find(chunks: int) -> list[Hit]:
            where = _where(self.where)
            return store.search(query, groups=self.groups, k=chunks, mode=self.mode, where=where)

        return [_out(document) for document, _ in whole(store, find, self.k, self.groups)]


def _where(filter: Filter) -> Where | None:
    if filter is None or isinstance(filter, Where):
        return filter
    if not isinstance(filter, Mapping):
        raise InputError(
            f"a filter cannot be {type(filter).__name__}.", "Give a Where, or metadata as a dict."
        )
    return Where(metadata=filter)


def _out(document: Document) -> LangChainDocument:
    return LangChainDocument(
        id=document.id, page_content=document.content, metadata=dict(document.metadata)
    )
