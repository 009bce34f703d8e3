"""How fast the store is and what deletion leaves behind, beside other stores, in one run.

Guarantees: every store gets the same vectors, texts, queries and deletions, on one thread, and its
durable form is what is timed; what is left is looked for byte by byte in all of its files. It does
not look at the blocks of the disk behind the files, and it measures this machine at this moment:
compare columns of one run, not runs.

Peers: FAISS Flat with the index rewritten after each deletion, and sqlite-vec (with secure_delete
and the log truncated) where it is installed with a SQLite that loads extensions.
"""

from __future__ import annotations

import importlib
import importlib.util
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.files import sync_directory, write_atomic
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.retrieval.index import Kind
from llm_unlearn.retrieval.settings import StoreSettings
from llm_unlearn.retrieval.store import Store

CHUNKS = 10  # of each document
_K = 10
_WIDTH = 64  # characters of a chunk


@dataclass(frozen=True)
class Row:
    """What was measured of one store; times in milliseconds, p50 and p95."""

    store: str
    ingest: float  # rows a second
    delete: tuple[float, float]
    search: tuple[float, float]
    recall: float
    search_after: tuple[float, float]  # after a tenth of the documents has been deleted
    recall_after: float
    texts_left: int  # of the documents deleted one by one
    vectors_left: int


class Peer(Protocol):
    """A store under measurement. Rows are numbered; document i has rows 10 i to 10 i + 9."""

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        """Take everything, durably; texts (n / 10), vectors (n, dim)."""

    def delete(self, documents: Sequence[int]) -> None:
        """Delete documents, durably."""

    def search(self, query: Floats) -> list[int]:
        """The rows of the ten nearest chunks."""

    def close(self) -> None:
        """Close the files."""


class _Given:
    """Stands where an embedder must, since the vectors are given."""

    digest = "given"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.tokenizer = Tokenizer(models.BPE())

    def encode(self, texts: Sequence[str]) -> Floats:
        raise InputError(f"there is no model to embed {len(texts)} texts with.")


class _Ours:
    def __init__(self, folder: Path, dim: int, kind: Kind) -> None:
        settings = StoreSettings(index=kind)
        self._store = Store.create(folder / "store", folder / "keys", _Given(dim), settings)

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        spans = [(i * _WIDTH, (i + 1) * _WIDTH) for i in range(CHUNKS)]
        self._store.add_ready(
            (Document(id=str(i), text=text), spans, vectors[i * CHUNKS : (i + 1) * CHUNKS])
            for i, text in enumerate(texts)
        )

    def delete(self, documents: Sequence[int]) -> None:
        for document in documents:
            self._store.delete(id=str(document))

    def search(self, query: Floats) -> list[int]:
        hits = self._store.search_vector(query, groups=["staff"], k=_K)
        return [int(hit.document) * CHUNKS + hit.start // _WIDTH for hit in hits]

    def close(self) -> None:
        self._store.close()


class _Flat:
    def __init__(self, folder: Path, dim: int) -> None:
        self._path = folder / "flat.index"
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        self._index.add_with_ids(vectors, np.arange(len(vectors)))
        self._write()

    def delete(self, documents: Sequence[int]) -> None:
        self._index.remove_ids(np.array([row for d in documents for row in _rows(d)]))
        self._write()

    def search(self, query: Floats) -> list[int]:
        rows: list[int] = self._index.search(query[None, :], _K)[1][0].tolist()
        return rows

    def close(self) -> None:
        sync_directory(self._path.parent)

    def _write(self) -> None:
        write_atomic(self._path, faiss.serialize_index(self._index).tobytes())


class _SqliteVec:
    def __init__(self, folder: Path, dim: int) -> None:
        self._db = _sqlite_with_extensions().connect(str(folder / "vec.db"), isolation_level=None)
        self._db.enable_load_extension(True)
        importlib.import_module("sqlite_vec").load(self._db)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE texts (document INTEGER PRIMARY KEY, text TEXT)")
        self._db.execute(f"CREATE VIRTUAL TABLE rows USING vec0(vector float[{dim}])")

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO texts VALUES (?,?)", enumerate(texts))
        rows = ((i, vector.tobytes()) for i, vector in enumerate(vectors))
        self._db.executemany("INSERT INTO rows(rowid, vector) VALUES (?,?)", rows)
        self._commit()

    def delete(self, documents: Sequence[int]) -> None:
        rows = [(row,) for document in documents for row in _rows(document)]
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM texts WHERE document=?", [(d,) for d in documents])
        self._db.executemany("DELETE FROM rows WHERE rowid=?", rows)
        self._commit()

    def search(self, query: Floats) -> list[int]:
        question = "SELECT rowid FROM rows WHERE vector MATCH ? AND k=?"
        return [row for (row,) in self._db.execute(question, (query.tobytes(), _K))]

    def close(self) -> None:
        self._db.close()

    def _commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _sqlite_with_extensions() -> Any:
    """A SQLite module that can load extensions; many builds of Python cannot. None without one."""
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    found = importlib.util.find_spec("pysqlite3")
    return importlib.import_module("pysqlite3.dbapi2") if found else None


def run(
    vectors: Floats,
    *,
    queries: int = 200,
    deletions: int = 100,
    seed: int = 0,
    folder: Path | None = None,
) -> list[Row]:
    """Measure each store.

    Args:
        vectors: unit rows (n, dim) float32; the last `queries` of them are asked, not stored.
        queries: how many searches to time.
        deletions: how many documents to delete one by one, timed and then looked for.
        seed: chooses what is deleted.
        folder: where to write; default a temporary directory.

    Raises:
        InputError: too few vectors.
    """
    asked, stored = vectors[-queries:], vectors[:-queries]
    documents = len(stored) // CHUNKS
    if documents < 2 * deletions:
        raise InputError(f"{len(vectors)} vectors are too few.", "Give more, or ask for less.")
    stored = np.ascontiguousarray(stored[: documents * CHUNKS])
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(seed)
    texts = [_text(i, rng) for i in range(documents)]
    gone = rng.choice(documents, size=max(deletions, documents // 10), replace=False).tolist()
    dim = stored.shape[1]
    peers: dict[str, Callable[[Path], Peer]] = {
        "ours, rabitq": lambda place: _Ours(place, dim, "rabitq"),
        "ours, flat": lambda place: _Ours(place, dim, "flat"),
        "FAISS Flat, rewritten": lambda place: _Flat(place, dim),
    }
    if importlib.util.find_spec("sqlite_vec") and _sqlite_with_extensions():
        peers["sqlite-vec"] = lambda place: _SqliteVec(place, dim)
    rows = []
    for name, make in peers.items():
        with tempfile.TemporaryDirectory(dir=folder) as place, closing(make(Path(place))) as peer:
            rows.append(_measure(name, peer, Path(place), texts, stored, asked, gone, deletions))
    return rows


def _measure(
    name: str,
    peer: Peer,
    place: Path,
    texts: Sequence[str],
    stored: Floats,
    asked: Floats,
    gone: Sequence[int],
    deletions: int,
) -> Row:
    start = time.perf_counter()
    peer.load(texts, stored)
    ingest = len(stored) / (time.perf_counter() - start)
    peer.search(asked[0])
    before, recall = _search(peer, asked, stored, ())
    times = [_timed(partial(peer.delete, [document])) for document in gone[:deletions]]
    files = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    found_texts = sum(any(texts[d].encode() in data for data in files) for d in gone[:deletions])
    # A vector that another document has too would be found there.
    seen = Counter(vector.tobytes() for vector in stored)
    wanted = [stored[d * CHUNKS].tobytes() for d in gone[:deletions]]
    wanted = [vector for vector in wanted if seen[vector] == 1]
    found_vectors = sum(any(vector in data for data in files) for vector in wanted)
    peer.delete(gone[deletions:])
    after, recall_after = _search(peer, asked, stored, gone)
    return Row(
        name,
        ingest,
        _p50_p95(times),
        before,
        recall,
        after,
        recall_after,
        found_texts,
        found_vectors,
    )


def _search(
    peer: Peer, asked: Floats, stored: Floats, gone: Sequence[int]
) -> tuple[tuple[float, float], float]:
    """p50 and p95 of a search, and recall@10 against exact scores over what is left."""
    kept = np.ones(len(stored), np.bool_)
    kept.reshape(-1, CHUNKS)[list(gone)] = False
    times, recalls = [], []
    for query in asked:
        start = time.perf_counter()
        found = peer.search(query)
        times.append(1000 * (time.perf_counter() - start))
        scores: NDArray[np.float32] = np.where(kept, stored @ query, -np.inf)
        best = np.argpartition(-scores, _K)[:_K]
        recalls.append(len(set(best.tolist()) & set(found)) / _K)
    return _p50_p95(times), statistics.fmean(recalls)


def _rows(document: int) -> range:
    return range(document * CHUNKS, (document + 1) * CHUNKS)


def _text(number: int, rng: np.random.Generator) -> str:
    """A text of ten chunks that nothing else holds."""
    return f"{number:08d} {rng.bytes(CHUNKS * _WIDTH // 2).hex()}"[: CHUNKS * _WIDTH]


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def _p50_p95(times: Sequence[float]) -> tuple[float, float]:
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the table."""
    table = Table(title="p50 / p95 in ms; recall@10 against exact search; one thread")
    for heading in ("store", "ingest rows/s", "delete one document", "search", "recall"):
        table.add_column(heading)
    for heading in ("search after deletions", "recall", "texts left", "vectors left"):
        table.add_column(heading)
    for row in rows:
        pairs = [f"{a:.2f} / {b:.2f}" for a, b in (row.delete, row.search, row.search_after)]
        table.add_row(
            row.store,
            f"{row.ingest:,.0f}",
            pairs[0],
            pairs[1],
            f"{row.recall:.3f}",
            pairs[2],
            f"{row.recall_after:.3f}",
            str(row.texts_left),
            str(row.vectors_left),
        )
    (console or Console()).print(table)
