"""What the store asks of an embedder, and the checks on what comes back.

Guarantees: `encode` and `unit` return finite float32 vectors of length 1 or raise. They do not make
an embedder deterministic: its `digest` promises that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llm_unlearn.errors import InputError

Floats = NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into unit vectors. `sentence-transformers` models fit behind it.

    The bits of a vector may depend on the shape of the batch, so callers pass the chunks of one
    document, or one query, per call.
    """

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def digest(self) -> str:
        """What decides the bits of the vectors: changes when the model does."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Counts the tokens of a chunk."""

    def encode(self, texts: Sequence[str]) -> Floats:
        """Texts (n) to L2-normalised float32 rows (n, dim)."""


def encode(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """The embedder's vectors, (n, dim) float32, checked; raises `InputError`."""
    vectors = np.asarray(embedder.encode(texts))
    expected = (len(texts), embedder.dim)
    if vectors.shape != expected or vectors.dtype != np.float32:
        raise InputError(
            f"the embedder returned {vectors.dtype} of shape {vectors.shape}.",
            f"It must return float32 of shape {expected}.",
        )
    check_units(vectors)
    return vectors


def check_units(vectors: Floats) -> None:
    """Raise `InputError` unless every row has length 1 to 1e-4 (and so is finite)."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if not np.all(np.abs(norms - 1.0) <= 1e-4):
        raise InputError("a vector is not of length 1.", "Normalise the vectors.")


def unit(vector: Floats, dim: int) -> Floats:
    """A query vector at length 1, (dim,) float32; raises `InputError`."""
    wide = np.asarray(vector, dtype=np.float64)
    norm = float(np.linalg.norm(wide)) if wide.shape == (dim,) else 0.0
    if not np.isfinite(norm) or norm == 0.0:
        raise InputError(
            f"the query vector of shape {wide.shape} cannot be searched.",
            f"Give {dim} finite numbers that are not all zero.",
        )
    return np.asarray(wide / norm, dtype=np.float32)
