"""One run over all stores: the same vectors, texts, queries and deletions for each.

Guarantees: times are of the durable form, one call each; recall is against exact scores over what
is left; residue is looked for byte by byte in every file of the store, in a copy made before the
deletions and on the blocks of a disk (`residue`). It does not average runs.
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

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.bench import device, life, residue
from llm_unlearn.retrieval.bench.peers import CHUNKS, SUBJECT, WIDTH, K, Make, Ours, Peer, rows_of
from llm_unlearn.retrieval.embedding import Floats

Pair = tuple[float, float]
_SUBJECTS = 5  # subjects deleted, timed each
_DEVICE = 2_000  # documents at most in the store whose disk is looked through
_SLICE = 1 << 18  # rows scored at once for recall


@dataclass(frozen=True)
class Row:
    """What was measured of one store; times in milliseconds, p50 and p95."""

    store: str
    ingest: float  # rows a second
    delete: Pair  # one document of ten chunks
    delete_subject: Pair | None  # a hundred documents; None: too few for it, or unable
    search: Pair
    recall: float
    search_after: Pair  # after a tenth of the documents has been deleted
    recall_after: float
    deleted: int  # documents deleted one by one; then of these, what is left:
    texts_left: int  # in the files
    vectors_left: int
    device: residue.Left | None  # None: no image can be mounted here
    life: life.Life | None  # of ours only


@dataclass(frozen=True)
class _Job:
    """What every store is given."""

    texts: Sequence[str]
    stored: Floats
    asked: Floats
    gone: Sequence[int]  # a tenth, deleted from everything
    subjects: Sequence[int]  # deleted last
    exact: Sequence[set[int]]  # the ten nearest of each query
    exact_after: Sequence[set[int]]
    deletions: int


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
        vectors: unit rows (n, dim) float32; `queries` of them, drawn at random, are asked, not stored.
        peers: the stores by name (see `choose`).
        queries: how many searches to time.
        deletions: how many documents to delete one by one, timed and then looked for.
        threads: how many FAISS may use.
        seed: chooses what is asked and what is deleted.
        folder: where to write; default a temporary directory.
        begun: told the name of each store when its turn comes.

    Raises:
        InputError: too few vectors.
    """
    asked, stored = _split(vectors, queries, seed)
    documents = len(stored) // CHUNKS
    if documents < 2 * deletions:
        raise InputError(f"{len(vectors)} vectors are too few.", "Give more, or ask for less.")
    stored = stored[: documents * CHUNKS]
    faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(seed)
    texts = [_text(i, rng) for i in range(documents)]
    whole = documents // SUBJECT
    subjects = list(range(whole))[-_SUBJECTS:] if whole >= 2 * _SUBJECTS else []
    most = subjects[0] * SUBJECT if subjects else documents
    gone = rng.choice(most, size=max(deletions, documents // 10), replace=False).tolist()
    exact = _nearest(stored, asked, ())
    after = _nearest(stored, asked, gone)
    job = _Job(texts, stored, asked, gone, subjects, exact, after, deletions)
    looked = not device.impossible()
    rows = []
    for name, make in peers.items():
        begun(name)
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            closing(make(Path(place), stored.shape[1])) as peer,
        ):
            rows.append(_measure(name, make, peer, Path(place), job, folder, looked))
    return rows


def _split(vectors: Floats, queries: int, seed: int) -> tuple[Floats, Floats]:
    """What is asked and what is stored, both in order.

    Drawn from everywhere: neighbours in a file are of one kind, and a kind of text can be easier to
    find than the rest.
    """
    drawn = np.zeros(len(vectors), np.bool_)
    drawn[np.random.default_rng(seed).permutation(len(vectors))[:queries]] = True
    return vectors[drawn], vectors[~drawn]


def _measure(
    name: str, make: Make, peer: Peer, place: Path, job: _Job, folder: Path | None, looked: bool
) -> Row:
    start = time.perf_counter()
    peer.load(job.texts, job.stored)
    ingest = len(job.stored) / (time.perf_counter() - start)
    peer.search(job.asked[0])
    before, recall = _search(peer, job.asked, job.exact)
    count: int = getattr(peer, "one_by_one", job.deletions)
    deleted = job.gone[:count]
    times = [_timed(partial(peer.delete, [document])) for document in deleted]
    # A row that another document has too would be found there.
    seen = Counter(vector.tobytes() for vector in job.stored)
    rows = [[job.stored[row].tobytes() for row in rows_of(d)] for d in deleted]
    rows = [[row for row in some if seen[row] == 1] for some in rows]
    del seen
    texts = [[job.texts[d][i * WIDTH :].encode() for i in range(CHUNKS)] for d in deleted]
    files = [path for path in place.rglob("*") if path.is_file()]
    texts_left, vectors_left = device.remaining(texts, files), device.remaining(rows, files)
    if len(job.gone) > count:
        peer.delete(job.gone[count:])
    after, recall_after = _search(peer, job.asked, job.exact_after)
    whole = [list(range(s * SUBJECT, (s + 1) * SUBJECT)) for s in job.subjects]
    subjects = [_timed(partial(peer.delete, some)) for some in whole[:count]]
    left = _on_device(make, job, folder) if looked else None
    return Row(
        name,
        ingest,
        _p50_p95(times),
        _p50_p95(subjects) if subjects else None,
        before,
        recall,
        after,
        recall_after,
        count,
        texts_left,
        vectors_left,
        left,
        life.measure(peer) if isinstance(peer, Ours) else None,
    )


def _on_device(make: Make, job: _Job, folder: Path | None) -> residue.Left:
    """The same on a smaller store, whose disk can be read in a moment."""
    few = min(_DEVICE, len(job.texts))
    vectors = np.unique(job.stored[: few * CHUNKS], axis=0)
    few = len(vectors) // CHUNKS
    gone = range(0, few, max(1, few // job.deletions))[: job.deletions]
    vectors = np.ascontiguousarray(vectors[: few * CHUNKS])
    return residue.on_device(make, job.texts[:few], vectors, gone, folder)


def _nearest(stored: Floats, asked: Floats, gone: Sequence[int]) -> list[set[int]]:
    """The rows of the ten exactly nearest to each query, without those of `gone`."""
    kept = np.ones(len(stored), np.bool_)
    for document in gone:
        kept[rows_of(document)] = False
    scores = np.full((len(asked), 0), 0, np.float32)
    rows = np.empty((len(asked), 0), np.int64)
    for start in range(0, len(stored), _SLICE):
        part = asked @ stored[start : start + _SLICE].T  # (queries, slice)
        part[:, ~kept[start : start + _SLICE]] = -np.inf
        scores = np.concatenate([scores, part], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + part.shape[1]), part.shape)
        rows = np.concatenate([rows, numbers], axis=1)
        best = np.argpartition(-scores, min(K, scores.shape[1] - 1), axis=1)[:, :K]
        scores = np.take_along_axis(scores, best, axis=1)
        rows = np.take_along_axis(rows, best, axis=1)
    return [set(some) for some in rows.tolist()]


def _search(peer: Peer, asked: Floats, exact: Sequence[set[int]]) -> tuple[Pair, float]:
    """p50 and p95 of a search, and recall@10."""
    times, recalls = [], []
    for query, best in zip(asked, exact, strict=True):
        start = time.perf_counter()
        found = peer.search(query)
        times.append(1000 * (time.perf_counter() - start))
        recalls.append(len(best & set(found)) / K)
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
