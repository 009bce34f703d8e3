"""Stores of other people, imported only when they are measured.

Guarantees: each is used as its documentation shows, with every deletion flushed to disk. What such a
store keeps in memory or on disk besides is its own affair; that is what is measured.
"""
# ruff: noqa: D102  (what each method does is said once, in `Peer`)

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from llm_unlearn.retrieval.bench.peers import CHUNKS, WIDTH, Flat, K, rows_of
from llm_unlearn.retrieval.embedding import Floats

_LINKS = 32  # of a point in FAISS's graph
_EFFORT = 128  # candidates while searching it


class Chroma:
    """Chroma on disk, a graph per collection."""

    def __init__(self, folder: Path, dim: int) -> None:
        chromadb = importlib.import_module("chromadb")
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        self._client: Any = chromadb.PersistentClient(str(folder), settings=settings)
        self._rows: Any = self._client.create_collection("rows", metadata={"hnsw:space": "ip"})

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        step = self._client.get_max_batch_size()
        for start in range(0, len(vectors), step):
            rows = range(start, min(start + step, len(vectors)))
            self._rows.add(
                ids=[str(row) for row in rows],
                embeddings=vectors[rows.start : rows.stop],
                documents=[_chunk(texts, row) for row in rows],
            )

    def delete(self, documents: Sequence[int]) -> None:
        for start in range(0, len(documents), 100):
            some = documents[start : start + 100]
            self._rows.delete(ids=[str(row) for d in some for row in rows_of(d)])

    def search(self, query: Floats) -> list[int]:
        found = self._rows.query(query_embeddings=query[None, :], n_results=K, include=[])
        return [int(row) for row in found["ids"][0]]

    def close(self) -> None:
        self._client.close()


class Lance:
    """LanceDB with an inverted file of plain vectors, trained once all rows are in."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._db: Any = importlib.import_module("lancedb").connect(str(folder))
        self._dim = dim
        self._rows: Any = None

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        arrow: Any = importlib.import_module("pyarrow")
        flat = arrow.array(vectors.reshape(-1))
        columns = {
            "row": arrow.array(range(len(vectors))),
            "document": arrow.array([row // CHUNKS for row in range(len(vectors))]),
            "text": arrow.array([_chunk(texts, row) for row in range(len(vectors))]),
            "vector": arrow.FixedSizeListArray.from_arrays(flat, self._dim),
        }
        self._rows = self._db.create_table("rows", arrow.table(columns))
        self._rows.create_index(metric="dot", index_type="IVF_FLAT", vector_column_name="vector")

    def delete(self, documents: Sequence[int]) -> None:
        self._rows.delete(f"document IN ({', '.join(map(str, documents))})")

    def search(self, query: Floats) -> list[int]:
        asked = self._rows.search(query).distance_type("dot").limit(K).select(["row", "_distance"])
        rows: list[int] = asked.to_arrow()["row"].to_pylist()
        return rows

    def close(self) -> None:
        self._rows = self._db = None


class QdrantEdge:
    """Qdrant as a library, its graph built once all rows are in."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._edge: Any = importlib.import_module("qdrant_edge")
        vectors = self._edge.EdgeVectorParams(size=dim, distance=self._edge.Distance.Dot)
        (folder / "shard").mkdir()
        config = self._edge.EdgeConfig(vectors=vectors, max_search_threads=1)
        self._shard: Any = self._edge.EdgeShard.create(str(folder / "shard"), config)

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        for start in range(0, len(vectors), 1000):
            points = [
                self._edge.Point(row, vectors[row].tolist(), {"text": _chunk(texts, row)})
                for row in range(start, min(start + 1000, len(vectors)))
            ]
            self._shard.update(self._edge.UpdateOperation.upsert_points(points))
        self._shard.optimize()
        self._shard.flush()

    def delete(self, documents: Sequence[int]) -> None:
        rows = [row for document in documents for row in rows_of(document)]
        self._shard.update(self._edge.UpdateOperation.delete_points(rows))
        self._shard.flush()

    def search(self, query: Floats) -> list[int]:
        asked = self._edge.Query.Nearest(query.tolist())
        found = self._shard.search(self._edge.SearchRequest(query=asked, limit=K))
        return [point.id for point in found]

    def close(self) -> None:
        self._shard.close()


class Hnsw(Flat):
    """FAISS's graph. It cannot delete: the whole graph is built anew and its file replaced."""

    one_by_one = 1  # deletions that are timed, since each takes as long as loading

    def __init__(self, folder: Path, dim: int) -> None:
        self._dim = dim
        super().__init__(folder, dim, self._empty())

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        self._vectors = vectors
        self._kept = np.ones(len(vectors), np.bool_)
        super().load(texts, vectors)

    def delete(self, documents: Sequence[int]) -> None:
        for document in documents:
            self._kept[rows_of(document)] = False
        self._index = faiss.IndexIDMap2(self._empty())
        self._index.add_with_ids(self._vectors[self._kept], np.flatnonzero(self._kept))
        self._write()

    def _empty(self) -> Any:
        graph = faiss.IndexHNSWFlat(self._dim, _LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = _EFFORT
        return graph


def _chunk(texts: Sequence[str], row: int) -> str:
    start = row % CHUNKS * WIDTH
    return texts[row // CHUNKS][start : start + WIDTH]
