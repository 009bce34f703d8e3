"""RaBitQ codes in FAISS's FastScan layout, writable row by row.

Guarantees: what `search` finds is a function of the codes at rows below the size, whatever was
written before. FAISS itself only appends to this layout, and rebuilds it to remove; here rows are
packed into their block of 32 in place, so writing costs the rows written. It takes no selector:
filtered searches go to the plain codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
_BLOCK = 32


class FastScan:
    """A FastScan index over `dim` coordinates whose centre is zero: it learns nothing."""

    def __init__(self, dim: int) -> None:
        index: Any = faiss.IndexRaBitQFastScan(dim, faiss.METRIC_INNER_PRODUCT)
        index.train(np.zeros((1, dim), np.float32))
        self._index = index
        self._packer = index.get_CodePacker()
        self._nothing = np.zeros(index.code_size, np.uint8)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows."""
        before = self._index.codes.size()
        wanted = -(-rows // _BLOCK) * self._packer.block_size
        if wanted > before:
            self._index.codes.resize(wanted)
            self._blocks().reshape(-1)[before:] = 0

    def put(self, rows: Iterable[int], codes: Codes) -> None:
        """Write codes (n, code size), as plain RaBitQ encodes them, to the rows."""
        blocks = self._blocks()
        for row, code in zip(rows, codes, strict=True):
            block = row // _BLOCK
            self._packer.pack_1(code, row % _BLOCK, blocks[block : block + 1])

    def clear(self, rows: Iterable[int]) -> None:
        """Overwrite rows with zeros."""
        places = list(rows)
        self.put(places, np.broadcast_to(self._nothing, (len(places), len(self._nothing))))

    def resize(self, size: int) -> None:
        """Let searches see the rows below `size` and no others."""
        self._index.ntotal = size
        self._index.ntotal2 = -(-size // _BLOCK) * _BLOCK

    def search(
        self, query: NDArray[np.float32], m: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best `m` estimated scores and their rows, best first; `m` at most the size."""
        scores, rows = self._index.search(query[None, :], m)
        return scores[0], rows[0]

    def _blocks(self) -> Codes:
        size = self._index.codes.size()
        memory: Codes = np.asarray(faiss.rev_swig_ptr(self._index.codes.get(), size))
        return memory.reshape(-1, self._packer.block_size)
