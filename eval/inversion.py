"""Embedding inversion by nearest neighbour: what text does a vector found on disk stand for?

Guarantees: exact search of the vector among an attacker's own candidates, by cosine. It is the
weakest inversion there is: a trained inverter (Morris et al. 2023) needs no candidates and gives
words back, so a miss here proves nothing, while a hit shows that a vector is as good as its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.summary import Estimate, bootstrap, wilson


@dataclass(frozen=True, slots=True)
class Inverted:
    """What nearest-neighbour search makes of some vectors.

    Attributes:
        guesses: the nearest candidate's index for each vector; equal cosines go to the first.
        cosines: its cosine.
        found: share of the vectors whose true text is the guess.
        overlap: mean ROUGE-L F1 of guess and true text: what is learned even by a miss.
    """

    guesses: NDArray[np.int64]
    cosines: NDArray[np.float64]
    found: Estimate
    overlap: Estimate


def invert(
    vectors: ArrayLike,
    truths: Sequence[str],
    candidates: Sequence[str],
    candidate_vectors: ArrayLike,
    *,
    seed: int = 0,
) -> Inverted:
    """Guess the text of each vector: the candidate with the largest x.y / (|x| |y|).

    (3, 4) among (1, 0) and (0, 2): 0.6 and 0.8, so the second.

    Args:
        vectors: (n, d), as found, at any scale.
        truths: the n texts they were made of.
        candidates: texts that the attacker tries; the true one may be among them or not.
        candidate_vectors: (m, d), by the same embedder.

    Raises:
        InputError: shapes that do not fit, a vector of zeros or with a number that is not finite.
    """
    x, y = np.asarray(vectors, np.float64), np.asarray(candidate_vectors, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"vectors {x.shape} and {y.shape}.", "Use one embedder for both.")
    if len(x) != len(truths) or len(y) != len(candidates) or not len(x) or not len(y):
        raise InputError(
            f"{len(x)} vectors for {len(truths)} texts, {len(y)} for {len(candidates)} candidates.",
            "Give one a text, and at least one of each.",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a vector holds a number that is not finite.", "Leave it out.")
    norms = [np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y)]
    if any((n == 0).any() for n in norms):
        raise InputError("a vector is all zeros.", "It stands for no text.")
    similar = (x / norms[0]) @ (y / norms[1]).T  # (n, m)
    guesses = similar.argmax(1)
    said = [candidates[g] for g in guesses]
    return Inverted(
        guesses,
        similar.max(1),
        wilson(sum(g == t for g, t in zip(said, truths, strict=True)), len(truths)),
        bootstrap([rouge_l(g, t).f1 for g, t in zip(said, truths, strict=True)], seed=seed),
    )
