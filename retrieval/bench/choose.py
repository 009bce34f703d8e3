"""Which stores can be measured here, by the names that a command line uses."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.bench.others import Chroma, Hnsw, Lance, QdrantEdge
from llm_unlearn.retrieval.bench.peers import Flat, Flat16, Make, Ours, SqliteVec, has_sqlite_vec
from llm_unlearn.retrieval.settings import StoreSettings


def choose(names: Sequence[str] = ()) -> tuple[dict[str, Make], list[str]]:
    """The stores to measure, and the names of those that are not installed.

    Args:
        names: which ones; default all that are installed, in full precision.

    Raises:
        InputError: an unknown name, or one that was asked for and is not installed.
    """
    known: dict[str, Make | None] = {
        "ours": lambda folder, dim: Ours(folder, dim, StoreSettings()),
        "ours-flat": lambda folder, dim: Ours(folder, dim, StoreSettings(index="flat")),
        "ours-flat16": lambda folder, dim: Ours(folder, dim, StoreSettings(index="flat16")),
        "faiss-flat": Flat,
        "faiss-flat16": Flat16,
        "faiss-hnsw": Hnsw,
        "sqlite-vec": SqliteVec if has_sqlite_vec() else None,
        "chroma": Chroma if _installed("chromadb") else None,
        "lancedb": Lance if _installed("lancedb") else None,
        "qdrant-edge": QdrantEdge if _installed("qdrant_edge") else None,
    }
    default = [name for name in known if not name.endswith("16")]
    for name in names:
        if name not in known:
            raise InputError(f"there is no store {name!r}.", f"Known: {', '.join(known)}.")
        if known[name] is None:
            raise InputError(f"{name} is not installed.", f"Install it, or leave {name} out.")
    found = {name: make for name, make in known.items() if make and name in (names or default)}
    return found, [name for name, make in known.items() if make is None]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
