"""Sign codes: one bit a coordinate, scanned by FAISS's FastScan, writable row by row.

A row's code holds the signs of its coordinates; a query is compared, unrounded, with sign vectors
(asymmetric comparison: Jain et al. 2011, Gordo et al. 2014). Told to FAISS as a product quantizer
(Jegou et al. 2011; FastScan: Andre et al. 2015) over groups of four coordinates whose 16 centroids
are the 16 sign patterns: a codebook that is fixed, so that nothing is learned from what is stored.

Guarantees: what `search` finds is a function of the codes at rows below the size, whatever was
written before and however many threads look. FAISS itself only appends to this layout, and rebuilds
it to remove; here rows are packed into their block of 32 in place, so writing costs the rows
written. FAISS never splits one query over threads, so the rows lie in segments, each an index of
its own. It does not promise recall: embeddings whose coordinates mostly share one sign need `flat`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Found = tuple[Floats, NDArray[np.int64]]  # scores and rows, best first
_BLOCK = 32
_SEGMENT = 1 << 17  # rows, a multiple of _BLOCK


class SignCodes:
    """The codes of rows of length `dim`.

    One query uses as many threads as FAISS is set to (`faiss.omp_set_num_threads`), at most one a
    segment.
    """

    def __init__(self, dim: int, segment: int = _SEGMENT) -> None:
        self._bytes = -(-dim // 8)
        self._per = segment
        self._codes: Codes = np.empty((0, self._bytes), np.uint8)
        self._segments: list[_Segment] = []
        self._size = 0
        self._workers: tuple[int, int, ThreadPoolExecutor] | None = None

    def encode(self, vectors: Floats) -> Codes:
        """The codes (n, dim / 8) of vectors (n, dim): bit i of a code is set where x_i > 0."""
        return np.packbits(vectors > 0, axis=1, bitorder="little")

    def read(self, rows: NDArray[np.int64]) -> Codes:
        """The codes at some rows."""
        return self._codes[rows]

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all."""
        if rows > len(self._codes):
            codes = np.zeros((rows, self._bytes), np.uint8)
            codes[: len(self._codes)] = self._codes
            self._codes = codes
        for number in range(-(-rows // self._per)):
            if number == len(self._segments):
                self._segments.append(_Segment(8 * self._bytes))
            self._segments[number].reserve(min(self._per, rows - number * self._per))

    def write(self, first: int, vectors: Floats) -> None:
        """Encode vectors (n, dim) into the neighbouring rows from `first` on."""
        codes = self.encode(vectors)
        self._codes[first : first + len(codes)] = codes
        at, end = 0, len(codes)
        while at < end:  # whole blocks at a time where they are
            segment, row = divmod(first + at, self._per)
            whole = min(end - at, self._per - row) // _BLOCK * _BLOCK
            if row % _BLOCK == 0 and whole:
                self._segments[segment].put_blocks(row // _BLOCK, codes[at : at + whole])
                at += whole
            else:
                self._segments[segment].put(row, codes[at])
                at += 1

    def move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy the codes of the rows `sources` to the rows `targets`."""
        self._put(targets, self._codes[sources])

    def clear(self, first: int, end: int) -> None:
        """Overwrite rows with zeros."""
        self._put(range(first, end), np.zeros((end - first, self._bytes), np.uint8))

    def _put(self, rows: Sequence[int], codes: Codes) -> None:
        self._codes[rows] = codes
        for row, code in zip(rows, codes, strict=True):
            self._segments[row // self._per].put(row % self._per, code)

    def resize(self, size: int) -> None:
        """Let searches see the rows below `size` and no others."""
        self._size = size
        for number, segment in enumerate(self._segments):
            segment.resize(min(max(size - number * self._per, 0), self._per))

    def search(self, query: Floats, m: int, visible: Mask | None = None) -> Found:
        """The best `m` rows by their codes, fewer when fewer are visible.

        FAISS leaves out rows of the lowest possible score, whose every sign is the opposite.

        Args:
            query: (dim,).
            visible: a mask over the rows below the size; None when all are.
        """
        padded = np.zeros((1, 8 * self._bytes), np.float32)
        padded[0, : len(query)] = query
        if visible is None:
            return self._best(padded, min(m, self._size))
        # FastScan takes no selector: ask for so many that enough of them are visible.
        count = int(np.count_nonzero(visible))
        m = min(m, count)
        ask = min(self._size, int(1.25 * m * self._size / max(count, 1)) + _BLOCK)
        while True:
            scores, rows = self._best(padded, ask)
            seen = visible[rows]
            if ask == self._size or np.count_nonzero(seen) >= m:
                return scores[seen][:m], rows[seen][:m]
            ask = min(self._size, 2 * ask)

    def _best(self, query: Floats, m: int) -> Found:
        used = -(-self._size // self._per)
        if used == 1:
            return self._segments[0].search(query, m)
        # Rows are spread by keyed hash, so each segment has about its share of the best. Ask for
        # six standard deviations more, and whoever still might hold back for everything.
        share = m / used
        few = min(m, int(share + 6 * share**0.5) + 8)
        parts = self._look(query, dict.fromkeys(range(used), few))
        while True:
            scores = np.concatenate([scores for scores, _ in parts.values()])
            rows = np.concatenate([rows + n * self._per for n, (_, rows) in parts.items()])
            best = np.lexsort((rows, -scores))[:m]
            scores, rows = scores[best], rows[best]
            worst = scores[-1] if len(scores) == m else -np.inf
            short = {n: m for n, (s, _) in parts.items() if len(s) == few < m and s[-1] >= worst}
            if not short:
                return scores, rows
            parts |= self._look(query, short)

    def _look(self, query: Floats, wanted: Mapping[int, int]) -> dict[int, Found]:
        """The best of some segments, of each as many as wanted."""
        threads = min(faiss.omp_get_max_threads(), len(wanted))

        def look(first: int) -> dict[int, Found]:
            mine = list(wanted)[first::threads]
            return {n: self._segments[n].search(query, wanted[n]) for n in mine}

        if threads == 1:
            return look(0)
        others = self._pool(threads).map(look, range(1, threads))
        found = look(0)
        for other in others:
            found |= other
        return dict(sorted(found.items()))

    def _pool(self, threads: int) -> ThreadPoolExecutor:
        # Threads do not survive a fork: the child needs its own.
        if self._workers is None or self._workers[:2] != (os.getpid(), threads):
            pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="sign-codes")
            self._workers = (os.getpid(), threads, pool)
        return self._workers[2]


class _Segment:
    """Rows that FAISS scans in one go."""

    def __init__(self, dim: int) -> None:
        index: Any = faiss.IndexPQFastScan(dim, dim // 4, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(_sign_patterns(dim).ravel(), index.pq.centroids)
        index.is_trained = True
        self._index = index
        self._packer = index.get_CodePacker()
        self._blocks: Codes = np.empty((0, self._packer.block_size), np.uint8)

    def reserve(self, rows: int) -> None:
        blocks, size = -(-rows // _BLOCK), self._packer.block_size
        before = len(self._blocks)
        if blocks > before:
            # Grown by half when it must grow: a row at a time would copy everything each time.
            blocks = max(blocks, before + before // 2)
            self._index.codes.resize(blocks * size)
            memory = faiss.rev_swig_ptr(self._index.codes.get(), blocks * size)
            self._blocks = np.asarray(memory).reshape(-1, size)
            self._blocks[before:] = 0

    def put(self, row: int, code: Codes) -> None:
        block = row // _BLOCK
        self._packer.pack_1(code, row % _BLOCK, self._blocks[block : block + 1])

    def put_blocks(self, first: int, codes: Codes) -> None:
        pointer: Callable[[Codes], Any] = faiss.swig_ptr
        for number in range(len(codes) // _BLOCK):
            code = codes[number * _BLOCK : (number + 1) * _BLOCK]
            self._packer.pack_all(pointer(code), pointer(self._blocks[first + number]))

    def resize(self, size: int) -> None:
        self._index.ntotal = size
        self._index.ntotal2 = -(-size // _BLOCK) * _BLOCK

    def search(self, query: Floats, m: int) -> Found:
        scores, rows = self._index.search(query, min(m, self._index.ntotal))
        good = rows[0] >= 0
        return scores[0][good], rows[0][good]


def _sign_patterns(dim: int) -> Floats:
    """The codebook (dim / 4, 16, 4): coordinate i of pattern p is 1 where bit i of p is set, else -1.

    >>> _sign_patterns(4)[0, 5].tolist()  # 5 = 0b0101
    [1.0, -1.0, 1.0, -1.0]
    """
    bits = np.arange(16)[:, None] >> np.arange(4) & 1
    return np.tile((2 * bits - 1).astype(np.float32), (dim // 4, 1, 1))
