"""Combining and thinning ranked lists: reciprocal rank fusion, maximal marginal relevance.

Guarantees: both are pure functions of their arguments; ties go to the smaller key (fusion) or to
the earlier candidate (relevance).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key", bound=tuple[bytes, int])
_RANK = 60


def fuse(rankings: Sequence[Sequence[Key]]) -> list[Key]:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): sum of 1 / (60 + rank)."""
    scores: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + 1 / (_RANK + rank)
    return sorted(scores, key=lambda key: (-scores[key], key))


def diversify(
    relevance: Sequence[float], vectors: NDArray[np.float32], k: int, diversity: float
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): which candidates, in order.

    Greedily takes the one with the largest (1 - diversity) * relevance - diversity * (largest
    cosine with one already taken).

    Args:
        relevance: cosine of each candidate with the query, in the order of the ranking (n).
        vectors: their unit vectors (n, dim).
        k: how many to take.
        diversity: 0 keeps the ranking by relevance, 1 ignores it.
    """
    wide = vectors.astype(np.float64)
    gain = (1 - diversity) * np.asarray(relevance, dtype=np.float64)
    closest = np.full(len(gain), -np.inf)
    taken: list[int] = []
    while len(taken) < min(k, len(gain)):
        value = gain - diversity * closest if taken else gain.copy()
        value[taken] = -np.inf
        best = int(np.argmax(value))
        taken.append(best)
        # One row at a time: bits that do not depend on the number of candidates.
        closest = np.maximum(closest, np.add.reduce(wide * wide[best], axis=1))
    return taken
