"""Was this subject ever here? An attacker who sees only the store as it is now.

Guarantees: the attacker asks the store about subjects that were removed and about ones that never
came, and sees scores alone; where the store equals never-had, both are never-had subjects to it, so
every AUC is at chance but for the choice of subjects. `unchanged` is the exact form: the same
queries on this store and on never-had give the same scores.

A subject that others still write about is near to something either way; choose the absent ones so
that their neighbours are as near (other works of the same kind), or the AUC shows the topic. "Ghost
Echoes" (arXiv 2608.20352) is the attack on stores that leave marks behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.membership import Attack, attack

Scores = Callable[[str], Sequence[float]]
"""A query's similarities to its nearest passages, best first; empty where nothing comes back."""
FEATURES = ("top", "gap", "mean", "spread")


def features(scores: Sequence[float]) -> dict[str, float]:
    """What an attacker reads off one search.

    top: the best score; gap: best less second; mean and spread (standard deviation) of all. 0.9,
    0.5, 0.4: 0.9, 0.4, 0.6, 0.216. Nothing found: all -1, as far as a cosine goes.
    """
    if not len(scores):
        return dict.fromkeys(FEATURES, -1.0)
    values = np.asarray(scores, np.float64)
    gap = float(values[0] - values[1]) if len(values) > 1 else 0.0
    return {
        "top": float(values[0]),
        "gap": gap,
        "mean": float(values.mean()),
        "spread": float(values.std()),
    }


def drift(
    search: Scores, removed: Sequence[str], absent: Sequence[str], *, seed: int = 0
) -> dict[str, Attack]:
    """AUC of each feature at telling removed subjects from absent ones; 0.5 is chance.

    Below 0.5 tells as much as above: an attacker may turn the sign.

    Raises:
        InputError: no queries of one kind.
    """
    if not removed or not absent:
        raise InputError(
            f"{len(removed)} removed and {len(absent)} absent queries.", "Give some of each."
        )
    sides = [[features(search(query)) for query in group] for group in (removed, absent)]
    return {
        name: attack([f[name] for f in sides[0]], [f[name] for f in sides[1]], seed=seed)
        for name in FEATURES
    }


def unchanged(now: Scores, never_had: Scores, queries: Sequence[str]) -> NDArray[np.float64]:
    """Largest difference of a score between the two stores for each query, (queries,); 0: the same.

    0.9, 0.5 now and 0.9, 0.4 never-had: 0.1. Other numbers of hits count as infinity.
    """
    return np.array([_difference(now(q), never_had(q)) for q in queries])


def _difference(a: ArrayLike, b: ArrayLike) -> float:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        return float("inf")
    return float(np.abs(x - y).max()) if x.size else 0.0
