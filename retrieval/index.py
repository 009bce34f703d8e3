"""The vector index in memory: FAISS proposes candidates, exact arithmetic decides.

Guarantees: every answer is a pure function of the set of entries, not of the order in which they
came and went: scores are recomputed in float64 per row, with bits that do not depend on the row's
position; equal scores are ordered by (handle, chunk number); candidates are taken up to a boundary
that position cannot move. `flat` and `flat16` find the exact nearest chunks; so does `rabitq` when at
most 2,000 are visible, and else the best of those whose codes rank highest. Nothing is learned
from the vectors, so nothing of a removed one stays; removed vectors are overwritten in memory. It
keeps nothing on disk, encrypts nothing, and is not thread-safe.

Rows are dense: removing moves the last rows into the holes, so a removal costs the rows removed,
not the index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from llm_unlearn.retrieval.fastscan import FastScan

Kind = Literal["rabitq", "flat", "flat16"]
_RESCORED = 200  # candidates of the codes that are scored exactly, at least
_SELECTIVE = 20_000  # up to so many visible rows the codes are quick, and more are scored
_RESCORED_SELECTIVE = 2000
Floats = NDArray[np.float32]


@dataclass(slots=True)
class Entry:
    """One document in the index: handle, the owner's note on it, and the rows of its chunks."""

    handle: bytes
    note: Any
    number: int
    rows: NDArray[np.int64]


def exact_scores(vectors: Floats, query: Floats) -> NDArray[np.float64]:
    """Inner products in float64, (m, d) x (d) -> (m), cut to [-1, 1].

    The products of float32 values are exact in float64; each row is summed by itself along the
    contiguous axis, so a row's bits depend on that row and the query alone (no BLAS, whose blocking
    depends on m).
    """
    products = np.multiply(vectors, query, dtype=np.float64)
    scores: NDArray[np.float64] = np.clip(np.add.reduce(products, axis=1), -1.0, 1.0)
    return scores


class VectorIndex:
    """Entries with their unit vectors, searched by inner product.

    Args:
        dim: of the vectors.
        kind: what FAISS holds; the exact float32 rows are kept beside unless it holds them itself.
    """

    def __init__(self, dim: int, kind: Kind = "flat") -> None:
        self.dim = dim
        self.kind = kind
        self._faiss = _codes(dim, kind)
        self._fast = FastScan(dim) if kind == "rabitq" else None
        self._entries: dict[bytes, Entry] = {}
        self._numbers: list[Entry | None] = []
        self._free: list[int] = []
        self._size = 0
        self._vectors: Floats = np.empty((0, dim), np.float32)
        self._number_of = np.empty(0, np.int32)
        self._chunk_of = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def chunks(self) -> int:
        """Rows: the chunks of all entries."""
        return self._size

    def __contains__(self, handle: bytes) -> bool:
        return handle in self._entries

    def get(self, handle: bytes) -> Entry | None:
        """The entry with this handle."""
        return self._entries.get(handle)

    def entry(self, handle: bytes) -> Entry:
        """The entry with this handle, which must be here."""
        return self._entries[handle]

    def entries(self) -> Iterator[Entry]:
        """All entries in canonical order (by handle)."""
        return iter([self._entries[handle] for handle in sorted(self._entries)])

    @property
    def numbers(self) -> Sequence[Entry | None]:
        """Entries by their number, None where a number is free; for masks in `search`."""
        return self._numbers

    def add(self, items: Sequence[tuple[bytes, Any, Floats]]) -> None:
        """Add entries (handle, note, unit vectors (n, dim) float32); the handles must be new."""
        total = sum(len(vectors) for _, _, vectors in items)
        self.reserve(self._size + total)
        first = self._size
        for handle, note, vectors in items:
            start, end = self._size, self._size + len(vectors)
            number = self._free.pop() if self._free else len(self._numbers)
            entry = Entry(handle, note, number, np.arange(start, end))
            if number == len(self._numbers):
                self._numbers.append(entry)
            else:
                self._numbers[number] = entry
            self._entries[handle] = entry
            self._vectors[start:end] = vectors
            self._number_of[start:end] = number
            self._chunk_of[start:end] = np.arange(end - start)
            self._size = end
        if total:
            codes = self._encode(self._vectors[first : self._size])
            self._code_rows()[first : self._size] = codes
            if self._fast:
                self._fast.put(range(first, self._size), codes)
        self._set_size(self._size)

    def remove(self, handles: Sequence[bytes]) -> None:
        """Remove entries and overwrite their vectors; unknown handles are passed over."""
        gone = [self._entries.pop(handle) for handle in handles if handle in self._entries]
        if not gone:
            return
        rows = np.concatenate([entry.rows for entry in gone])
        for entry in gone:
            self._numbers[entry.number] = None
            self._free.append(entry.number)
        size = self._size - len(rows)
        holes = np.sort(rows[rows < size])
        movers = np.setdiff1d(np.arange(size, self._size), rows, assume_unique=True)
        codes = self._code_rows()
        arrays: list[NDArray[Any]] = [self._vectors, codes, self._number_of, self._chunk_of]
        for array in arrays:
            array[holes] = array[movers]
        for array in arrays:
            array[size : self._size] = 0
        if self._fast:
            self._fast.put(holes.tolist(), codes[holes])
            self._fast.clear(range(size, self._size))
        for row in holes.tolist():
            moved = self._numbers[self._number_of[row]]
            assert moved is not None
            moved.rows[self._chunk_of[row]] = row
        self._set_size(size)

    def vectors(self, entry: Entry) -> Floats:
        """A copy of the entry's vectors, (n, dim) float32, in chunk order."""
        return self._vectors[entry.rows]

    def codes(self, entry: Entry) -> bytes:
        """What FAISS holds of the entry, in chunk order."""
        return self._code_rows()[entry.rows].tobytes()

    def encode(self, vectors: Floats) -> bytes:
        """What FAISS should hold of these vectors."""
        return self._encode(vectors).tobytes()

    def search(
        self, query: Floats, k: int, visible: NDArray[np.bool_] | None = None
    ) -> list[tuple[float, Entry, int]]:
        """The `k` best chunks as (score, entry, chunk number), fewer when fewer are visible.

        Args:
            query: unit vector, (dim,) float32.
            k: at least 1.
            visible: a mask over entry numbers; None when every entry is visible.
        """
        if self._size == 0:
            return []
        rows = None if visible is None else visible[self._number_of[: self._size]]
        count = self._size if rows is None else int(np.count_nonzero(rows))
        if count == 0:
            return []
        found = self._candidates(query, k, count, rows)
        scores = exact_scores(self._vectors[found], query)
        # Only rows that can still be among the best k need the full ordering.
        if len(found) > k:
            worst = np.partition(scores, len(scores) - k)[len(scores) - k]
            keep = scores >= worst
            found, scores = found[keep], scores[keep]
        best = []
        for row, score in zip(found.tolist(), scores.tolist(), strict=True):
            entry = self._numbers[self._number_of[row]]
            assert entry is not None
            best.append((score, entry, int(self._chunk_of[row])))
        best.sort(key=lambda item: (-item[0], item[1].handle, item[2]))
        return best[:k]

    # --- inside

    def _set_size(self, size: int) -> None:
        self._size = self._faiss.ntotal = size
        if self._fast:
            self._fast.resize(size)

    def _candidates(
        self, query: Floats, k: int, count: int, rows: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """The rows to score exactly, of the `count` visible: a function of the set, not its order.

        What FAISS finds is cut at a score, never at a length, since which of several equal scores
        it keeps depends on their positions.
        """
        propose = self._proposer(query, rows)
        if self.kind != "rabitq":
            score = self._scorer(query)
            return _exact_candidates(propose, count, k, self._error(), score)
        enough = max(_RESCORED if count > _SELECTIVE else _RESCORED_SELECTIVE, 10 * k)
        if count <= enough:
            return np.arange(self._size) if rows is None else np.flatnonzero(rows)
        m = enough + 32
        while True:
            m = min(m, count)
            scores, found = propose(m)
            if m == count or scores[-1] < scores[enough - 1]:
                return np.asarray(found[scores >= scores[enough - 1]])
            m *= 4

    def _proposer(
        self, query: Floats, rows: NDArray[np.bool_] | None
    ) -> Callable[[int], tuple[Floats, NDArray[np.int64]]]:
        """A function from m to FAISS's best m (scores, rows) among the visible."""
        if rows is None and self._fast:
            fast = self._fast
            return lambda m: fast.search(query, m)
        parameters: Any = _parameters(self.kind)
        if rows is not None:
            bits = np.packbits(rows, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(rows), faiss.swig_ptr(bits))
            parameters.sel = selector

        def propose(m: int) -> tuple[Floats, NDArray[np.int64]]:
            # `bits` must outlive the search: the selector only points at it.
            assert rows is None or len(bits)
            scores, found = self._faiss.search(query[None, :], m, params=parameters)
            return scores[0], found[0]

        return propose

    def _scorer(self, query: Floats) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
        return lambda rows: exact_scores(self._vectors[rows], query)

    def _error(self) -> float:
        """A bound on |FAISS's score - exact score| for vectors of norm at most 1.0001.

        Summing d products in float32 in any order errs by at most d u / (1 - d u) times the sum of
        their magnitudes, u = 2^-24 (Higham 2002, section 3.1), which is at most the product of the
        norms; half-precision rows add 2^-11 relative and 2^-25 absolute per coordinate.
        """
        bound = (self.dim + 8) * 2.0**-24
        if self.kind == "flat16":
            bound += 2.0**-11 + 2.0**-25 * self.dim**0.5
        return 1.01 * bound

    def _encode(self, vectors: Floats) -> NDArray[np.uint8]:
        return np.asarray(self._faiss.sa_encode(np.ascontiguousarray(vectors)))

    def _code_rows(self) -> NDArray[np.uint8]:
        """FAISS's own memory as (capacity, code size); valid until the next `reserve`."""
        size = self._faiss.codes.size()
        flat = faiss.rev_swig_ptr(self._faiss.codes.data(), size)
        return np.asarray(flat).reshape(-1, self._faiss.code_size)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all; knowing it before a load saves copying."""
        capacity = len(self._number_of)
        if rows <= capacity:
            return
        # The first room is sized exactly; later growth by half keeps additions cheap.
        rows = rows if capacity == 0 else max(rows, capacity + capacity // 2)
        self._faiss.codes.resize(rows * self._faiss.code_size)
        if self._fast:
            self._fast.reserve(rows)
        self._number_of = _grown(self._number_of, rows)
        self._chunk_of = _grown(self._chunk_of, rows)
        if self.kind == "flat":
            self._vectors = self._code_rows().view(np.float32)
        else:
            self._vectors = _grown(self._vectors, rows)


def _exact_candidates(
    propose: Callable[[int], tuple[Floats, NDArray[np.int64]]],
    count: int,
    k: int,
    error: float,
    score: Callable[[NDArray[np.int64]], NDArray[np.float64]],
) -> NDArray[np.int64]:
    """Rows that surely include the exact best k of `count`, ties at the k-th score included.

    A row that FAISS left out scores at most its last proposal plus `error`. Once the k-th exact
    score found lies above that, nothing outside can belong or tie; until then look further.
    """
    m = min(count, 2 * k + 16)
    while True:
        proposed, rows = propose(m)
        if m == count:
            return rows
        scores = score(rows)
        kth = np.partition(scores, m - k)[m - k]
        if kth > float(proposed[-1]) + error:
            return rows
        m = min(count, 4 * m)


def _grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    grown = np.zeros((rows, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


def _parameters(kind: Kind) -> Any:
    if kind != "rabitq":
        return faiss.SearchParameters()
    parameters: Any = faiss.RaBitQSearchParameters()
    parameters.qb = 4  # bits per coordinate of the query
    return parameters


def _codes(dim: int, kind: Kind) -> Any:
    """An empty FAISS index that learns nothing from what it will hold."""
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "rabitq":
        index: Any = faiss.IndexRaBitQ(dim, faiss.METRIC_INNER_PRODUCT)
        index.train(np.zeros((1, dim), np.float32))  # so the centre is zero, whatever comes
        return index
    return faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
