"""The store as a LlamaIndex vector store (extra `llamaindex`).

Guarantees: a `TextNode` comes back as it went in (id, text, metadata), all of it sealed on disk;
what the groups may not see is in no answer, not even by id; without groups there is no answer; what
is deleted is gone from every file of the store. Of the nodes that a node is related to only id and
type are kept: a hash or the metadata of a deleted node must not live on in its neighbour.

Does not guarantee anything about what LlamaIndex keeps beside its vector store: a storage context
holds hashes of whole texts and writes them in the clear when it is persisted. Images and index nodes
are refused, since LlamaIndex would keep them there itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from llm_unlearn.documents import Document
from llm_unlearn.errors import EnvironmentFailure, InputError
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
from llm_unlearn.retrieval.where import Where

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.schema import BaseNode, RelatedNodeInfo, TextNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )

    from llm_unlearn.integrations.llamaindex_queries import matcher, mode_of, restricts
except ModuleNotFoundError as missing:
    raise EnvironmentFailure(
        f"{missing.name} is not installed.", "Install llm-unlearn[llamaindex]."
    ) from missing

__all__ = ["LlamaIndexEmbedder", "UnlearnVectorStore"]

_NODE = "_node"  # in a document's metadata: the rest of the node
_REF = "_ref_doc_id"  # and the source document, which deletion goes by


class LlamaIndexEmbedder(OutsideEmbedder):
    """LlamaIndex's `BaseEmbedding` as the store's `Embedder`.

    Args:
        model: what turns texts into vectors, of any length but zero.
        digest: what decides the bits of the vectors, such as a model's name and revision: a store
            opens only with the digest it was filled with.
        tokenizer: counts the tokens of a chunk; default words and punctuation marks.
    """

    def __init__(
        self, model: BaseEmbedding, *, digest: str, tokenizer: Tokenizer | None = None
    ) -> None:
        self.model = model
        super().__init__(model.get_text_embedding_batch, digest, tokenizer)


class UnlearnVectorStore(BasePydanticVectorStore):  # type: ignore[misc]
    """A `Store` behind LlamaIndex's interface; asynchronous methods run in a thread.

    A node that brings its embedding keeps it, as one chunk; another is embedded by the store. Nodes
    of one source document are one subject, unless their metadata name another. Deletion reaches
    every document, whoever may see it.

    Args:
        store: an open store; open it for writing to add and delete.
        groups: on whose behalf nodes are searched, unless a query says `groups=...`
            (`vector_store_kwargs` of a retriever).
        fields: which keys of a node's metadata are also the store's own field of that name, so that
            `acl` (a list of groups) is enforced.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    _store: Store = PrivateAttr()
    _groups: frozenset[str] = PrivateAttr()
    _fields: frozenset[str] = PrivateAttr()

    def __init__(
        self, store: Store, *, groups: Collection[str] = (), fields: Collection[str] = FIELDS
    ) -> None:
        super().__init__()
        self._store = store
        self._groups = frozenset(groups)
        self._fields = frozenset(fields)

    @classmethod
    def class_name(cls) -> str:
        """The name of this component."""
        return "UnlearnVectorStore"

    @property
    def client(self) -> Store:
        """The store."""
        return self._store

    # --- writing

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes, or replace those whose ids are there; their ids.

        The new ones are added all or none; each replacement is all or nothing by itself.

        Raises:
            InputError: a node is not a `TextNode`, or cannot be kept as it is.
            AccessDenied: a node to be replaced is under a legal hold.
        """
        documents = {node.node_id: (self._document(node), _vector(node)) for node in nodes}
        put(self._store, list(documents.values()))
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete every node of a source document for good; none is no error.

        Raises:
            AccessDenied: one of them is under a legal hold; nothing is deleted then.
        """
        self._store.delete(where=Where(metadata={_REF: str(ref_doc_id)}))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes for good, by ids, by filters, or those that meet both.

        Raises:
            InputError: neither was given. (Everything is never deleted by omission.)
            AccessDenied: one of them is under a legal hold; nothing is deleted then.
        """
        if node_ids is None and not restricts(filters):
            raise InputError("give node_ids or filters to delete by.", "To delete all, clear.")
        ids = node_ids
        if restricts(filters):
            test = matcher(filters, _REF)
            named = None if node_ids is None else set(node_ids)
            found = [meta for meta in everything(self._store) if named is None or meta.id in named]
            ids = [meta.id for meta in found if test(meta)]
        self._store.delete(where=Where(ids=ids))

    def clear(self) -> None:
        """Delete everything for good.

        Raises:
            AccessDenied: a document is under a legal hold; nothing is deleted then.
        """
        self._store.delete(where=Where(ids=[meta.id for meta in everything(self._store)]))

    # --- searching

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        *,
        groups: Collection[str] | None = None,
    ) -> list[BaseNode]:
        """The nodes of these ids, in their order, or all by id, that meet the filters and that the groups
        may see. Without their embeddings."""
        allowed = self._groups if groups is None else groups
        ids = node_ids
        if node_ids is None or restricts(filters):
            found = dict.fromkeys(self._matching(filters, allowed, None))
            ids = list(found) if node_ids is None else [name for name in node_ids if name in found]
        return [_out(document) for document in self._store.get(ids or [], groups=allowed)]

    def query(
        self,
        query: VectorStoreQuery,
        *,
        groups: Collection[str] | None = None,
        mmr_threshold: float | None = None,
        **kwargs: Any,
    ) -> VectorStoreQueryResult:
        """The nodes nearest to a query, with the cosine of their best chunk, whatever ranked them.

        The modes are `default`, `mmr` (1 for `mmr_threshold` is nearness alone), `sparse` and
        `text_search` (BM25), and `hybrid` (reciprocal rank fusion). `alpha` cannot weigh the two:
        it may be 0 (words alone) or 1 (vectors alone). Lists of no ids restrict nothing, as in
        LlamaIndex, whose retrievers always send one.

        Raises:
            InputError: another mode, or a filter that cannot be applied.
            AccessDenied: no groups.
        """
        if kwargs:
            raise InputError(f"a query does not know {', '.join(sorted(kwargs))}.", "Leave it out.")
        allowed = self._groups if groups is None else groups
        mode, k = mode_of(query), query.similarity_top_k
        if query.mode == VectorStoreQueryMode.HYBRID and query.hybrid_top_k is not None:
            k = query.hybrid_top_k
        elif mode == "lexical" and query.sparse_top_k is not None:
            k = query.sparse_top_k
        diversity = 0.0
        if query.mode == VectorStoreQueryMode.MMR:
            chosen = query.mmr_threshold if mmr_threshold is None else mmr_threshold
            diversity = 1 - (0.5 if chosen is None else chosen)
        where, text = self._where(query, allowed), query.query_str or ""
        if query.query_embedding is None:
            if mode == "dense":
                raise InputError("the query has no embedding.", "Give one.")

            def find(chunks: int) -> list[Hit]:
                return self._store.search(text, groups=allowed, k=chunks, mode=mode, where=where)
        else:
            vector = np.asarray(query.query_embedding, np.float32)

            def find(chunks: int) -> list[Hit]:
                return self._store.search_vector(
                    vector,
                    groups=allowed,
                    k=chunks,
                    diversity=diversity,
                    where=where,
                    text=text,
                    mode=mode,
                )

        found = whole(self._store, find, k, allowed)
        return VectorStoreQueryResult(
            nodes=[_out(document) for document, _ in found],
            similarities=[score for _, score in found],
            ids=[document.id for document, _ in found],
        )

    # --- the same in a thread

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """As `delete_nodes`."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """As `clear`."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        *,
        groups: Collection[str] | None = None,
    ) -> list[BaseNode]:
        """As `get_nodes`."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters, groups=groups)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    # --- inside

    def _where(self, query: VectorStoreQuery, groups: Collection[str]) -> Where | None:
        sources = {_REF: list(query.doc_ids)} if query.doc_ids else None
        ids = list(query.node_ids) if query.node_ids else None
        if restricts(query.filters):
            ids = self._matching(query.filters, groups, ids)
        if ids is None and sources is None:
            return None
        return Where(ids=ids, metadata=sources)

    def _matching(
        self, filters: MetadataFilters | None, groups: Collection[str], ids: list[str] | None
    ) -> list[str]:
        where = None if ids is None else Where(ids=ids)
        test = matcher(filters or MetadataFilters(filters=[]), _REF)  # none: all
        return [meta.id for meta in self._store.known(groups=groups, where=where) if test(meta)]

    def _document(self, node: BaseNode) -> Document:
        if type(node) is not TextNode:
            raise InputError(
                f"the node {node.node_id!r} is a {type(node).__name__}.",
                "Only a TextNode can be kept: split documents first, leave out images and index nodes.",
            )
        clash = {_NODE, _REF} & node.metadata.keys()
        if clash:
            raise InputError(
                f"the metadata of {node.node_id!r} use the reserved name {min(clash)}.",
                "Rename it.",
            )
        related = {
            kind: [_bare(one) for one in others] if isinstance(others, list) else _bare(others)
            for kind, others in node.relationships.items()
        }
        bare = node.model_copy(update={"relationships": related, "embedding": None})
        rest = bare.model_dump(mode="json", exclude={"id_", "text", "metadata", "embedding"})
        metadata: dict[str, Any] = {**node.metadata, _NODE: rest}
        own = {key: value for key, value in node.metadata.items() if key in self._fields}
        source = node.source_node
        if source is not None:
            metadata[_REF] = source.node_id
            own.setdefault("subject", source.node_id)
        return as_document(node.node_id, node.text, own, metadata, own)


def _bare(related: RelatedNodeInfo) -> RelatedNodeInfo:
    return RelatedNodeInfo(node_id=related.node_id, node_type=related.node_type)


def _vector(node: BaseNode) -> Any:
    return None if node.embedding is None else units([node.embedding])[0]


def _out(document: Document) -> TextNode:
    metadata = dict(document.metadata)
    metadata.pop(_REF, None)
    rest = metadata.pop(_NODE, None)
    known = rest if isinstance(rest, dict) else {}  # a document that was not added as a node
    return TextNode(id_=document.id, text=document.content, metadata=metadata, **known)
