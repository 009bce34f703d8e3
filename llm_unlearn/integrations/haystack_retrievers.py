"""Retrievers of Haystack for `haystack.UnlearnDocumentStore` (extra `haystack`).

Guarantees: what the document store guarantees; groups and filters hold before the search, and a run
without any groups, its own or the document store's, has no answer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

from llm_unlearn.integrations.haystack import UnlearnDocumentStore  # says what is missing

# isort: split
from haystack import Document as HaystackDocument
from haystack import component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy, apply_filter_policy

__all__ = ["UnlearnBM25Retriever", "UnlearnEmbeddingRetriever"]

Filters = dict[str, Any] | None


class _Retriever:
    """What both retrievers share."""

    def __init__(
        self,
        document_store: UnlearnDocumentStore,
        filters: Filters = None,
        top_k: int = 10,
        groups: Collection[str] | None = None,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.groups = None if groups is None else frozenset(groups)
        self.filter_policy = (
            FilterPolicy.from_str(filter_policy)
            if isinstance(filter_policy, str)
            else filter_policy
        )
        component.set_output_types(self, documents=list[HaystackDocument])

    def to_dict(self) -> dict[str, Any]:
        """How to make this retriever again."""
        made: dict[str, Any] = default_to_dict(
            self,
            document_store=self.document_store,
            filters=self.filters,
            top_k=self.top_k,
            groups=None if self.groups is None else sorted(self.groups),
            filter_policy=self.filter_policy.value,
        )
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Undo `to_dict`."""
        made: Self = default_from_dict(cls, data)
        return made

    def _asked(
        self, filters: Filters, top_k: int | None, groups: Collection[str] | None
    ) -> dict[str, Any]:
        return {
            "filters": apply_filter_policy(self.filter_policy, self.filters, filters),
            "top_k": self.top_k if top_k is None else top_k,
            "groups": self.groups if groups is None else groups,
        }


@component
class UnlearnEmbeddingRetriever(_Retriever):
    """The documents nearest to an embedding.

    Args:
        document_store: what to search.
        filters: Haystack's filters.
        top_k: how many documents.
        groups: the caller's groups; default those of the document store.
        filter_policy: whether filters of a run replace these or are merged with them.
    """

    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        groups: list[str] | None = None,
    ) -> dict[str, list[HaystackDocument]]:
        """`documents`, best first."""
        asked = self._asked(filters, top_k, groups)
        return {"documents": self.document_store.search(None, query_embedding, **asked)}


@component
class UnlearnBM25Retriever(_Retriever):
    """The best documents by BM25; with `query_embedding` too, by both (reciprocal rank fusion).

    Args:
        document_store: what to search.
        filters: Haystack's filters.
        top_k: how many documents.
        groups: the caller's groups; default those of the document store.
        filter_policy: whether filters of a run replace these or are merged with them.
    """

    def run(
        self,
        query: str,
        query_embedding: list[float] | None = None,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        groups: list[str] | None = None,
    ) -> dict[str, list[HaystackDocument]]:
        """`documents`, best first."""
        asked = self._asked(filters, top_k, groups)
        return {"documents": self.document_store.search(query, query_embedding, **asked)}
