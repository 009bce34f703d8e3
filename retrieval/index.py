"""The vector index in memory: FAISS proposes candidates, exact arithmetic decides.

Guarantees: every answer is a pure function of the set of entries, not of the order in which they
came and went: scores are recomputed in float64 per row, with bits that do not depend on the row's
position; equal scores are ordered by (handle, chunk number); candidates are taken up to a boundary
that position cannot move. `flat` and `flat16` find the exact nearest chunks; so does `signs` among at
most 2,000 chunks and for a caller who sees at most 20,000, and else the best of those whose codes
rank highest. Nothing is learned from the vectors, so nothing of a removed one stays; removed vectors
are overwritten in memory. It keeps nothing on disk, encrypts nothing, and is not thread-safe.

Rows are dense: removing moves the last rows into the holes, so a removal costs the rows removed,
not the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.retrieval.flat import FlatCodes
from llm_unlearn.retrieval.signs import Floats, Mask, SignCodes

Kind = Literal["signs", "flat", "flat16"]
_RESCORED = 200  # candidates of the codes that are scored exactly, at least
_FEW = 2000  # so many chunks are all scored
_FEW_SEEN = 20_000  # and so many when others are hidden: a list must not be worse for that
Rows = NDArray[np.int64]


@dataclass(slots=True)
class Entry:
    """One document in the index: handle, the owner's note on it, and the rows of its chunks."""

    handle: bytes
    note: Any
    number: int
    rows: Rows


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
        self._codes: SignCodes | FlatCodes = (
            SignCodes(dim) if kind == "signs" else FlatCodes(dim, half=kind == "flat16")
        )
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
            self._codes.write(first, self._vectors[first : self._size])
        self._codes.resize(self._size)

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
        self._codes.move(holes.tolist(), movers.tolist())
        self._codes.clear(size, self._size)
        arrays: list[NDArray[Any]] = [self._vectors, self._number_of, self._chunk_of]
        for array in arrays[self.kind == "flat" :]:  # there the vectors are the codes
            array[holes] = array[movers]
            array[size : self._size] = 0
        for row in holes.tolist():
            moved = self._numbers[self._number_of[row]]
            assert moved is not None
            moved.rows[self._chunk_of[row]] = row
        self._size = size
        self._codes.resize(size)

    def vectors(self, entry: Entry) -> Floats:
        """A copy of the entry's vectors, (n, dim) float32, in chunk order."""
        return self._vectors[entry.rows]

    def codes(self, entry: Entry) -> bytes:
        """What FAISS holds of the entry, in chunk order."""
        return self._codes.read(entry.rows).tobytes()

    def encode(self, vectors: Floats) -> bytes:
        """What FAISS should hold of these vectors."""
        return self._codes.encode(vectors).tobytes()

    def search(
        self, query: Floats, k: int, visible: Mask | None = None
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
        vectors = np.take(self._vectors, found, axis=0)
        if len(found) > k:
            # Single precision tells which rows can still be among the best k; only those need
            # exact scores.
            rough = vectors @ query
            kth = np.partition(rough, len(rough) - k)[len(rough) - k]
            keep = rough >= kth - 2 * _error(self.dim)
            found, vectors = found[keep], vectors[keep]
        scores = exact_scores(vectors, query)
        best = []
        for row, score in zip(found.tolist(), scores.tolist(), strict=True):
            entry = self._numbers[self._number_of[row]]
            assert entry is not None
            best.append((score, entry, int(self._chunk_of[row])))
        best.sort(key=lambda item: (-item[0], item[1].handle, item[2]))
        return best[:k]

    # --- inside

    def _candidates(self, query: Floats, k: int, count: int, rows: Mask | None) -> Rows:
        """The rows to score exactly, of the `count` visible: a function of the set, not its order.

        What FAISS finds is cut at a score, never at a length, since which of several equal scores
        it keeps depends on their positions.
        """
        if self.kind != "signs":
            return self._exact_candidates(query, k, count, rows)
        enough = max(_RESCORED, 10 * k)
        if count > max(enough, _FEW if rows is None else _FEW_SEEN):
            m = enough + 64
            while m < count:
                scores, found = self._codes.search(query, m, rows)
                if len(scores) > enough and scores[-1] < scores[enough - 1]:
                    return np.asarray(found[scores >= scores[enough - 1]])
                m *= 4
        return np.arange(self._size) if rows is None else np.flatnonzero(rows)

    def _exact_candidates(self, query: Floats, k: int, count: int, rows: Mask | None) -> Rows:
        """Rows that surely include the exact best k of `count`, ties at the k-th score included.

        A row that FAISS left out scores at most its last proposal plus the error. Once the k-th
        exact score found lies above that, nothing outside can belong or tie; until then look
        further.
        """
        error = _error(self.dim, half=self.kind == "flat16")
        m = min(count, 2 * k + 16)
        while True:
            proposed, found = self._codes.search(query, m, rows)
            if m == count:
                return found
            scores = exact_scores(self._vectors[found], query)
            kth = np.partition(scores, m - k)[m - k]
            if kth > float(proposed[-1]) + error:
                return found
            m = min(count, 4 * m)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all; knowing it before a load saves copying."""
        capacity = len(self._number_of)
        if rows <= capacity:
            return
        # The first room is sized exactly; later growth by half keeps additions cheap.
        rows = rows if capacity == 0 else max(rows, capacity + capacity // 2)
        self._codes.reserve(rows)
        self._number_of = _grown(self._number_of, rows)
        self._chunk_of = _grown(self._chunk_of, rows)
        if isinstance(self._codes, FlatCodes) and self.kind == "flat":
            self._vectors = self._codes.memory.view(np.float32)
        else:
            self._vectors = _grown(self._vectors, rows)


def _error(dim: int, *, half: bool = False) -> float:
    """A bound on |single-precision score - exact score| for vectors of norm at most 1.0001.

    Summing d products in float32 in any order errs by at most d u / (1 - d u) times the sum of
    their magnitudes, u = 2^-24 (Higham 2002, section 3.1), which is at most the product of the
    norms; half-precision rows add 2^-11 relative and 2^-25 absolute per coordinate.
    """
    bound = (dim + 8) * 2.0**-24
    if half:
        bound += 2.0**-11 + 2.0**-25 * dim**0.5
    return 1.01 * bound


def _grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    grown = np.zeros((rows, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
