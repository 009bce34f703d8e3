"""Vectors to measure with: a file of them, or invented ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.retrieval.embedding import Floats, check_units

_SPREAD = 0.6  # of a point around its cluster's centre, as lengths before normalising


def load_vectors(path: Path) -> Floats:
    """Unit rows (n, dim) float32 of a `.npy` file.

    Raises:
        NotFound: no such file.
        InputError: it holds something else.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Give a .npy file of unit vectors.")
    try:
        vectors = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is no .npy file.", "Write it with numpy.save.") from error
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise InputError(
            f"{path} holds {vectors.dtype} of shape {vectors.shape}.", "Give float32 (n, dim)."
        )
    check_units(vectors)
    return np.ascontiguousarray(vectors)


def thinned(vectors: Floats, most: int, seed: int = 0) -> Floats:
    """At most so many of the rows, drawn from everywhere and in order."""
    if len(vectors) <= most:
        return vectors
    kept = np.random.default_rng(seed).choice(len(vectors), size=most, replace=False)
    return np.ascontiguousarray(vectors[np.sort(kept)])


def synthetic(rows: int, dim: int = 384, seed: int = 0) -> Floats:
    """Unit rows (rows, dim) float32 in clusters of about a hundred, shuffled.

    Clusters far apart are easier to search than sentences, so recall on them flatters every index
    that is not exact.
    """
    rng = np.random.default_rng(seed)
    clusters = max(1, rows // 100)
    centres = rng.standard_normal((clusters, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    found = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 1 << 16):
        stop = min(start + (1 << 16), rows)
        noise = rng.standard_normal((stop - start, dim), dtype=np.float32)
        part = centres[rng.integers(clusters, size=stop - start)] + noise * (_SPREAD / dim**0.5)
        found[start:stop] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return found
