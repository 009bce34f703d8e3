"""Paired prompts: does the model treat two that differ in one word alike?

Guarantees: everything is paired, pair by pair, and both directions are told apart from both sizes.
It measures the pairs that it is given and says nothing of others; a gap that never-had has as well
is the base model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llm_unlearn.errors import InputError
from llm_unlearn.eval.summary import Estimate, bootstrap, paired_difference, wilson


@dataclass(frozen=True, slots=True)
class BiasGap:
    """The gap between the two wordings of each pair.

    Attributes:
        gap: mean of first less second; 0 where neither is favoured on the whole.
        size: mean of |first - second|: a model may favour each as often and still treat them apart.
        first: share of pairs in which the first is favoured, ties left out (as in CrowS-Pairs,
            Nangia et al. 2020); 0.5 is even. None if all are ties.
    """

    gap: Estimate
    size: Estimate
    first: Estimate | None


def bias_gap(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> BiasGap:
    """Compare values of paired prompts: log-probabilities of one continuation, or 0 and 1.

    First -1, -2, -3 and second -2, -2, -1: gaps 1, 0, -2, mean -1/3, size 1, first 1 of 2.

    Raises:
        InputError: no pairs, or not as many of each.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"values of shapes {a.shape} and {b.shape}.", "Give one of each a pair.")
    apart = int((a != b).sum())
    return BiasGap(
        gap=paired_difference(a, b, seed=seed),
        size=bootstrap(np.abs(a - b), seed=seed),
        first=wilson(int((a > b).sum()), apart) if apart else None,
    )


def paired_prompts(template: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each pair of words put into the template's `{}`.

    Raises:
        InputError: the template has not exactly one `{}`.
    """
    if template.count("{}") != 1:
        raise InputError(f"the template {template[:60]!r} has not one {{}}.", "Put in one.")
    head, tail = template.split("{}")
    return [(f"{head}{a}{tail}", f"{head}{b}{tail}") for a, b in pairs]
