"""How well a model knows a text by heart, from the token scores of one pass. Pure NumPy.

Guarantees: every value is a function of one `TokenScores`, so another harness can supply it. It
does not sample or generate: "greedy" here is teacher-forced (each token is guessed with the true
tokens before it). That equals free greedy decoding as long as no token was missed, so extraction
strength and an exact memorization of 1 are exact; below 1, `exact` and `near_verbatim` are upper
estimates of what free decoding would give back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import TokenScores


@dataclass(frozen=True, slots=True)
class Memorization:
    """What one text's token scores say of its memorization.

    Attributes:
        tokens: number of targets.
        loss: mean of -log p over the targets, in nats.
        probability: geometric mean of p, `exp(-loss)`, in [0, 1]; comparable across lengths.
        log_probability: log of the probability of the whole answer; its exponential is `total`.
        exact: share of targets that are the model's first guess (exact memorization).
        extraction_strength: see `extraction_strength`.
        longest_run: largest number of consecutive targets guessed right.
    """

    tokens: int
    loss: float
    probability: float
    log_probability: float
    exact: float
    extraction_strength: float
    longest_run: int

    @property
    def total(self) -> float:
        """Probability of the whole answer; underflows to 0 for long ones."""
        return float(np.exp(self.log_probability))


def loss(scores: TokenScores) -> float:
    """Mean of -log p over the targets, in nats.

    p = 1/2 and 1/8: (ln 2 + ln 8) / 2 = 2 ln 2 = 1.386.
    """
    return -float(_some(scores).astype(np.float64).mean())


def verbatim_probability(scores: TokenScores) -> float:
    """Geometric mean of p over the targets, in [0, 1] (Maini et al. 2024, TOFU, equation 1).

    p = 1/2 and 1/8: (1/16)^(1/2) = 0.25.
    """
    return float(np.exp(-loss(scores)))


def log_probability(scores: TokenScores) -> float:
    """Log of the probability of all targets together. p = 1/2 and 1/8: ln(1/16) = -2.773."""
    return float(_some(scores).astype(np.float64).sum())


def exact_memorization(scores: TokenScores) -> float:
    """Share of targets that are the model's first guess (Tirumala et al. 2022).

    Hits 1, 0, 1, 1: 3/4.
    """
    _some(scores)
    return float(scores.hit.mean())


def extraction_strength(scores: TokenScores) -> float:
    """Share of the answer that greedy decoding gives back from the shortest sufficient prefix.

    1 - k/L, where k is the least number of true tokens after which all others are guessed right
    (Carlini et al. 2021; Wang et al. 2025). With none guessed right at the end k = L and the value
    is 0; some implementations stop at k = L - 1 and call a total miss 1/L.

    Hits 1, 0, 1, 1: after the first two tokens the last two follow, so k = 2 and 1 - 2/4 = 0.5.
    Hits 1, 1, 1, 0: k = 4 and the value is 0.
    """
    _some(scores)
    return _tail(scores.hit) / len(scores)


def near_verbatim(scores: TokenScores, tolerance: float = 0.1) -> bool:
    """Whether at most the share `tolerance` of the targets is guessed wrong, teacher-forced.

    Hits 1, 1, 1, 0 with tolerance 0.25: true; with 0.2: false.
    """
    _some(scores)
    return float((~scores.hit).mean()) <= tolerance  # 1 - tolerance would round


def longest_run(scores: TokenScores) -> int:
    """Largest number of consecutive targets guessed right. Hits 1, 0, 1, 1: 2."""
    _some(scores)
    misses = np.flatnonzero(np.concatenate(([True], ~scores.hit, [True])))
    return int(np.diff(misses).max() - 1)


def memorized_runs(scores: TokenScores, least: int = 1) -> list[tuple[int, int]]:
    """The maximal runs `[start, end)` of targets guessed right, at least `least` long.

    Indices count targets; `Encoded.spans[scores.positions[i]]` gives their characters, so that a
    report can highlight them. Hits 1, 0, 1, 1: [(0, 1), (2, 4)].
    """
    padded = np.concatenate(([False], scores.hit, [False])).astype(np.int8)
    edges = np.diff(padded)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b - a >= least]


def memorization(scores: Sequence[TokenScores]) -> list[Memorization]:
    """All of the above for each text.

    Raises:
        InputError: a text without targets.
    """
    return [
        Memorization(
            tokens=len(s),
            loss=loss(s),
            probability=verbatim_probability(s),
            log_probability=log_probability(s),
            exact=exact_memorization(s),
            extraction_strength=extraction_strength(s),
            longest_run=longest_run(s),
        )
        for s in scores
    ]


def _tail(hit: NDArray[np.bool_]) -> int:
    """Length of the run of hits that the array ends with."""
    misses = np.flatnonzero(~hit)
    return len(hit) if not len(misses) else len(hit) - 1 - int(misses[-1])


def _some(scores: TokenScores) -> NDArray[np.float32]:
    if not len(scores):
        raise InputError("a text has no scored tokens.", "Set its loss mask for the answer.")
    return scores.logp
