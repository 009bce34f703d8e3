"""Whole rows in FAISS, as float32 or half precision, scanned exhaustively.

Guarantees: what `search` finds is a function of the rows below the size; FAISS learns nothing from
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from llm_unlearn.retrieval.signs import Codes, Floats, Found, Mask


class FlatCodes:
    """Rows of length `dim`, in half precision when `half`."""

    def __init__(self, dim: int, *, half: bool) -> None:
        kind = faiss.ScalarQuantizer.QT_fp16
        self._faiss: Any = (
            faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
            if half
            else faiss.IndexFlatIP(dim)
        )

    @property
    def memory(self) -> Codes:
        """FAISS's own memory as (capacity, code size); valid until the next `reserve`."""
        size = self._faiss.codes.size()
        flat = faiss.rev_swig_ptr(self._faiss.codes.data(), size)
        return np.asarray(flat).reshape(-1, self._faiss.code_size)

    def encode(self, vectors: Floats) -> Codes:
        """The codes (n, code size) of vectors (n, dim)."""
        return np.asarray(self._faiss.sa_encode(np.ascontiguousarray(vectors)))

    def read(self, rows: NDArray[np.int64]) -> Codes:
        """The codes at some rows."""
        return self.memory[rows]

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all."""
        self._faiss.codes.resize(max(rows * self._faiss.code_size, self._faiss.codes.size()))

    def write(self, first: int, vectors: Floats) -> None:
        """Encode vectors (n, dim) into the neighbouring rows from `first` on."""
        self.memory[first : first + len(vectors)] = self.encode(vectors)

    def move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy the codes of the rows `sources` to the rows `targets`."""
        self.memory[targets] = self.memory[sources]

    def clear(self, first: int, end: int) -> None:
        """Overwrite rows with zeros."""
        self.memory[first:end] = 0

    def resize(self, size: int) -> None:
        """Let searches see the rows below `size` and no others."""
        self._faiss.ntotal = size

    def search(self, query: Floats, m: int, visible: Mask | None = None) -> Found:
        """The best `m` rows, which must be that many, among the visible ones (None: all)."""
        parameters: Any = faiss.SearchParameters()
        if visible is not None:
            bits = np.packbits(visible, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(visible), faiss.swig_ptr(bits))
            parameters.sel = selector
        scores, rows = self._faiss.search(query[None, :], m, params=parameters)
        return scores[0], rows[0]
