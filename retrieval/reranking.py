"""A second look at the best hits by a model that reads question and text together.

Guarantees: the order is a function of the scores; equal ones are ordered by (handle, start). It
does not make the scores repeat: a reranker must score each text whatever its neighbours are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.hits import Hit


class Reranker(Protocol):
    """Scores texts against a question, higher for better; cross-encoders fit behind it."""

    def score(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """One finite number for each text."""


def candidates(k: int) -> int:
    """How many hits to look at again for the best `k`."""
    return min(1000, max(4 * k, 20))


def rerank(reranker: Reranker, query: str, hits: Sequence[Hit], k: int) -> list[Hit]:
    """The best `k` of the hits by the reranker's scores; a hit keeps its cosine as `score`.

    Raises:
        InputError: the reranker returns something else than one finite number for each text.
    """
    scores = np.asarray(reranker.score(query, [hit.text for hit in hits]), dtype=np.float64)
    if scores.shape != (len(hits),) or not np.isfinite(scores).all():
        raise InputError(
            f"the reranker returned scores of shape {scores.shape} for {len(hits)} texts.",
            "It must return one finite number for each.",
        )
    order = sorted(range(len(hits)), key=lambda i: (-scores[i], hits[i].handle, hits[i].start))
    return [hits[i] for i in order[:k]]
