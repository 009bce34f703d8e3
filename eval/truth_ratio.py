"""TOFU's truth ratio: does a model still prefer the true answer to changed ones?

Guarantees: the formulas of the paper (Maini et al. 2024) and of its published code, which differ,
both by name. It measures preference among given wordings; it does not ask the model anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.eval.memorization import loss
from llm_unlearn.eval.passes import TokenScores

Purpose = Literal["forgotten", "kept"]


def truth_ratio(
    paraphrase: float, perturbed: Sequence[float], mean: Literal["arithmetic", "geometric"]
) -> float:
    """Mean length-normalised probability of the wrong answers over that of the right paraphrase.

    Args:
        paraphrase: loss per token of the paraphrased right answer.
        perturbed: loss per token of each wrong answer in the same wording.
        mean: the paper's formula takes the arithmetic mean of the probabilities; the published
            code, and hence every published number, the geometric one.

    Losses ln 2 for the right, ln 2 and ln 8 for the wrong: arithmetic (1/2 + 1/8) / 2 / (1/2) =
    0.625, geometric sqrt(1/2 * 1/8) / (1/2) = 0.5. Low means that the truth is known; about 1 that
    the model does not care.

    Raises:
        InputError: no wrong answers, or a loss that is not finite.
    """
    wrong = np.asarray(perturbed, np.float64)
    if not len(wrong) or not np.isfinite(wrong).all() or not np.isfinite(paraphrase):
        raise InputError(
            f"{len(wrong)} wrong answers, or a loss that is not finite.", "Give at least one."
        )
    if mean == "geometric":
        return float(np.exp(paraphrase - wrong.mean()))
    return float(np.exp(paraphrase - wrong).mean())


def truth_ratio_of(
    paraphrase: TokenScores,
    perturbed: Sequence[TokenScores],
    mean: Literal["arithmetic", "geometric"] = "geometric",
) -> float:
    """`truth_ratio` from token scores."""
    return truth_ratio(loss(paraphrase), [loss(p) for p in perturbed], mean)


def truth_score(ratio: float, purpose: Purpose) -> float:
    """A truth ratio r as a score in [0, 1], as the published code aggregates it.

    For text that should be kept, max(0, 1 - r): 1 is sure of the truth. For text that should be
    forgotten, min(r, 1/r): 1 prefers neither. r = 0.5: 0.5 both ways; r = 2: kept 0, forgotten
    0.5.
    """
    if purpose == "kept":
        return max(0.0, 1 - ratio)
    return min(ratio, 1 / ratio) if ratio > 0 else 0.0
