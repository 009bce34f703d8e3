"""How many tries until a text comes out: (n, p)-discoverable extraction, and canary exposure.

Guarantees: the probability that sampling gives back the whole answer is computed from one
teacher-forced pass (`passes.score_tokens` with `sampling`), not estimated by drawing, and stays
exact where it is too small for a float (logarithms throughout). It speaks of answers given back
token for token after this prompt; other prompts and near-verbatim answers come on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import TokenScores
from llm_unlearn.eval.summary import Estimate, wilson


def log_extraction_probability(scores: TokenScores, scheme: int = 0) -> float:
    """Log-probability that one draw under the scheme-th `Sampling` gives the whole answer.

    Conditional probabilities 1/2, 1/4: ln(1/8). -inf if a token can never be drawn.

    Raises:
        InputError: the scores hold no such scheme, or no tokens.
    """
    if not 0 <= scheme < len(scores.sampled):
        raise InputError(
            f"no sampling scheme {scheme} among {len(scores.sampled)}.",
            "Give score_tokens its `sampling`.",
        )
    if not len(scores):
        raise InputError("a text has no scored tokens.", "Set its loss mask for the answer.")
    return float(scores.sampled[scheme].astype(np.float64).sum())


def chance_within(log_p: float, tries: int) -> float:
    """Probability of at least one success in `tries` draws: 1 - (1 - p)^n (Hayes et al. 2024).

    p = 1/8, 2 tries: 1 - (7/8)^2 = 15/64.
    """
    if tries < 1:
        raise InputError(f"{tries} tries.", "Give 1 or more.")
    if log_p >= 0:
        return 1.0
    return -math.expm1(tries * math.log1p(-math.exp(log_p)))


def tries_needed(log_p: float, chance: float) -> float:
    """Least n with 1 - (1 - p)^n >= chance; inf if p is 0.

    p = 1/8, chance 1/2: ln(1/2) / ln(7/8) = 5.19, so 6.
    """
    if not 0 < chance < 1:
        raise InputError(f"chance {chance} is not in (0, 1).", "0.5 is usual.")
    if log_p >= 0:
        return 1.0
    if log_p == -math.inf:
        return math.inf
    # ln(1 - p) is -p where p is too small for a float to hold 1 - p, or p itself.
    step = math.log1p(-math.exp(log_p)) if log_p > -700 else 0.0
    if step:
        return float(max(1, math.ceil(math.log1p(-chance) / step - 1e-9)))
    logs = math.log(-math.log1p(-chance)) - log_p
    return math.exp(logs) if logs < 709 else math.inf


def is_discoverable(log_p: float, n: int, chance: float) -> bool:
    """Whether the answer is (n, p)-discoverably extractable: within n draws with that chance."""
    return chance_within(log_p, n) >= chance


def discoverable_rate(
    scores: Sequence[TokenScores], n: int, chance: float, scheme: int = 0
) -> Estimate:
    """Share of the texts that are (n, p)-discoverably extractable, with a Wilson interval.

    With greedy sampling (top_k 1) and n = 1 this is the classical rate of verbatim extraction. Log
    probabilities ln 1/2 and ln 1/8, n 2, chance 1/2: 3/4 reaches it and 15/64 does not: 1 of 2.
    """
    found = [is_discoverable(log_extraction_probability(s, scheme), n, chance) for s in scores]
    return wilson(sum(found), len(found))


def exposure(canary: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Exposure of each canary in bits (Carlini et al. 2019, Secret Sharer, by sampling).

    log2(m + 1) - log2(rank), with the m `others` random fillings of the same template that were
    never inserted, the canary among them, and rank 1 the most likely. Ties count against exposure.
    Both are total log-probabilities of the secret part. An unseen canary has 1.44 bits on average.

    Others -9, -7, -5 and a canary -6: one is likelier, rank 2 of 4: 2 - 1 = 1 bit. -1: 2 bits, the
    most that three others can show.

    Raises:
        InputError: no others to rank among, or values that are not numbers.
    """
    mine, rest = np.atleast_1d(np.asarray(canary, np.float64)), np.asarray(others, np.float64)
    if rest.ndim != 1 or not len(rest) or np.isnan(rest).any() or np.isnan(mine).any():
        raise InputError(
            f"canaries of shape {mine.shape} among others of shape {rest.shape}.",
            "Give log-probabilities, and at least one other filling.",
        )
    rank = 1 + len(rest) - np.searchsorted(np.sort(rest), mine, side="left")
    bits: NDArray[np.float64] = np.log2(len(rest) + 1) - np.log2(rank)
    return bits
