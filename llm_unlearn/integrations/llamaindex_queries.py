"""LlamaIndex's query modes and metadata filters, as the store understands them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.parts import Meta
from llm_unlearn.retrieval.query import Mode

_SOURCE_NAMES = ("ref_doc_id", "doc_id", "document_id")  # what filters call a source document
_MODES: dict[str, Mode] = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.MMR: "dense",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
    VectorStoreQueryMode.HYBRID: "hybrid",
}


def mode_of(query: VectorStoreQuery) -> Mode:
    """How the store is searched for it.

    Raises:
        InputError: another mode, or a weight between words and vectors.
    """
    if query.mode not in _MODES:
        known = ", ".join(str(mode.value) for mode in _MODES)  # type: ignore[attr-defined]
        raise InputError(f"the query mode {query.mode!r} is unknown.", f"Use {known}.")
    mode = _MODES[query.mode]
    if mode == "hybrid" and query.alpha is not None:
        if query.alpha not in (0, 1):
            raise InputError(
                f"alpha={query.alpha}: hybrid search goes by ranks and cannot be weighed.",
                "Leave alpha out, or give 0 (words alone) or 1 (vectors alone).",
            )
        return "dense" if query.alpha else "lexical"
    return mode


def restricts(filters: MetadataFilters | None) -> bool:
    """Whether they leave anything out."""
    return filters is not None and bool(filters.filters)


def matcher(filters: MetadataFilters, source_key: str) -> Callable[[Meta], bool]:
    """LlamaIndex's own meaning of filters, nested ones included, for what is known of a document.

    Args:
        source_key: the name in its metadata of the document that a node is part of.

    Raises:
        InputError: by what is returned, where values cannot be compared.
    """
    now: dict[str, Mapping[str, Any]] = {}
    holds = _nested(filters, now)

    def test(meta: Meta) -> bool:
        source = meta.metadata.get(source_key)
        now[""] = {**dict.fromkeys(_SOURCE_NAMES, source), **meta.metadata}
        try:
            return holds()
        except (TypeError, ValueError) as error:
            raise InputError(f"the filter cannot be applied: {error}.", "Change it.") from error

    return test


def _nested(filters: MetadataFilters, now: Mapping[str, Mapping[str, Any]]) -> Callable[[], bool]:
    tests: list[Callable[[], bool]] = []
    for one in filters.filters:
        if isinstance(one, MetadataFilters):
            tests.append(_nested(one, now))
        else:
            plain = build_metadata_filter_fn(now.__getitem__, MetadataFilters(filters=[one]))
            tests.append(partial(plain, ""))
    if filters.condition == FilterCondition.OR:
        return lambda: any(test() for test in tests)
    if filters.condition == FilterCondition.NOT:
        return lambda: not any(test() for test in tests)
    return lambda: all(test() for test in tests)
