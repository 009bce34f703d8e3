"""One run over all stores: the same vectors, texts, queries and deletions for each.

Guarantees: times are of the durable form, one call each; recall is against exact scores over what
is left; residue is looked for byte by byte in every file of the store. It does not average runs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.bench.peers import CHUNKS, WIDTH, K, Make, Peer, rows_of
from llm_unlearn.retrieval.embedding import Floats

Pair = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """What was measured of one store; times in milliseconds, p50 and p95."""

    store: str
    ingest: float  # rows a second
    delete: Pair  # one document of ten chunks
    search: Pair
    recall: float
    search_after: Pair  # after a tenth of the documents has been deleted
    recall_after: float
    texts_left: int  # of the documents deleted one by one
    vectors_left: int


def run(
    vectors: Floats,
    peers: dict[str, Make],
    *,
    queries: int = 200,
    deletions: int = 100,
    threads: int = 1,
    seed: int = 0,
    folder: Path | None = None,
    begun: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Measure each store.

    Args:
        vectors: unit rows (n, dim) float32; the last `queries` of them are asked, not stored.
        peers: the stores by name (see `choose`).
        queries: how many searches to time.
        deletions: how many documents to delete one by one, timed and then looked for.
        threads: how many FAISS may use.
        seed: chooses what is deleted.
        folder: where to write; default a temporary directory.
        begun: told the name of each store when its turn comes.

    Raises:
        InputError: too few vectors.
    """
    asked, stored = vectors[-queries:], vectors[:-queries]
    documents = len(stored) // CHUNKS
    if documents < 2 * deletions:
        raise InputError(f"{len(vectors)} vectors are too few.", "Give more, or ask for less.")
    stored = np.ascontiguousarray(stored[: documents * CHUNKS])
    faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(seed)
    texts = [_text(i, rng) for i in range(documents)]
    gone = rng.choice(documents, size=max(deletions, documents // 10), replace=False).tolist()
    rows = []
    for name, make in peers.items():
        begun(name)
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            closing(make(Path(place), stored.shape[1])) as peer,
        ):
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


def _search(peer: Peer, asked: Floats, stored: Floats, gone: Sequence[int]) -> tuple[Pair, float]:
    """p50 and p95 of a search, and recall@10 against exact scores over what is left."""
    kept = np.ones(len(stored), np.bool_)
    for document in gone:
        kept[rows_of(document)] = False
    times, recalls = [], []
    for query in asked:
        start = time.perf_counter()
        found = peer.search(query)
        times.append(1000 * (time.perf_counter() - start))
        scores: NDArray[np.float32] = np.where(kept, stored @ query, -np.inf)
        best = np.argpartition(-scores, K)[:K]
        recalls.append(len(set(best.tolist()) & set(found)) / K)
    return _p50_p95(times), statistics.fmean(recalls)


def _text(number: int, rng: np.random.Generator) -> str:
    """A text of ten chunks that nothing else holds."""
    return f"{number:08d} {rng.bytes(CHUNKS * WIDTH // 2).hex()}"[: CHUNKS * WIDTH]


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def _p50_p95(times: Sequence[float]) -> Pair:
    return float(np.percentile(times, 50)), float(np.percentile(times, 95))
