"""A value with its uncertainty.

Guarantees: the same numbers for the same seed, on any machine (NumPy's PCG64). The intervals speak
of drawing other texts like these; they do not cover another training run, another prompt wording,
or texts chosen because they leaked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError

# Resampled indices held at once (numbers), so that memory does not grow with rounds x texts.
_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, rate or other statistic; its standard error, an interval, and the sample size."""

    mean: float
    standard_error: float
    low: float
    high: float
    n: int


def _values(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"values of shape {array.shape}.", "Give a list of at least one number.")
    if not np.isfinite(array).all():
        raise InputError(
            f"{int((~np.isfinite(array)).sum())} of {len(array)} values are not finite.",
            "Leave them out, and say how many.",
        )
    return array


def bootstrap(
    values: ArrayLike, *, confidence: float = 0.95, rounds: int = 2000, seed: int = 0
) -> Estimate:
    """Mean with a percentile bootstrap interval (Efron 1979); the standard error is s / sqrt(n).

    The values 1, 2, 3: mean 2, s = 1, standard error 1/sqrt(3) = 0.577. One value: standard error
    nan, and an interval of that value alone. The n values are drawn with replacement, `rounds`
    times; the interval is the (1 - confidence)/2 quantile of their means, and its mirror.

    Raises:
        InputError: no values, or one that is not finite.
    """
    array = _values(values)
    means = np.concatenate(
        [array[index].mean(axis=1) for index in resamples(len(array), rounds, seed)]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    spread = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float("nan")
    return Estimate(float(array.mean()), spread, float(low), float(high), len(array))


def resamples(n: int, rounds: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`rounds` rows of n indices below n, drawn with replacement, in blocks of bounded size."""
    random = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _AT_ONCE // n)
    for done in range(0, rounds, step):
        yield random.integers(0, n, size=(min(step, rounds - done), n))


def paired_difference(
    after: ArrayLike,
    before: ArrayLike,
    *,
    confidence: float = 0.95,
    rounds: int = 2000,
    seed: int = 0,
) -> Estimate:
    """`bootstrap` of after[i] - before[i], the same text on two models.

    After 3, 5 and before 1, 1: differences 2 and 4, mean 3, standard error sqrt(2)/sqrt(2) = 1.
    """
    first, second = _values(after), _values(before)
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} values after but {len(second)} before.", "Give one pair a text."
        )
    return bootstrap(first - second, confidence=confidence, rounds=rounds, seed=seed)


def sign_flip(
    differences: ArrayLike, *, exact: int = 12, rounds: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p of a paired mean, were the sign of each difference a coin's (Fisher 1935).

    The share of the 2^n ways to sign the differences whose sum is at least as far from 0 as theirs.
    1, 2, 3: of the eight sums 6, 4, 2, 0, 0, -2, -4, -6 two are: p = 2/8 = 0.25. So n of one sign
    have p = 2 / 2^n: 0.0625 for 5, 0.03125 for 6. Above `exact` differences, `rounds` drawn ways
    stand for all, and the observed one counts as one more: (1 + as far) / (1 + rounds).

    Raises:
        InputError: no differences, or one that is not finite.
    """
    array = _values(differences)
    n = len(array)
    # what differs by rounding alone is as far
    least = abs(float(array.sum())) - 1e-12 * float(np.abs(array).sum())
    if n <= exact:
        ways = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float((np.abs((1 - 2 * ways) @ array) >= least).mean())
    random = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _AT_ONCE // n)
    far = 0
    for done in range(0, rounds, step):
        ways = random.integers(0, 2, size=(min(step, rounds - done), n))
        far += int((np.abs((1 - 2 * ways) @ array) >= least).sum())
    return (1 + far) / (1 + rounds)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A rate with the Wilson score interval (Wilson 1927): inside [0, 1], and not empty at 0.

    With z = 1.96: centre (p + z^2/2n) / (1 + z^2/n), half width
    z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2). 0 of 10: [0, 0.278]; 5 of 10: [0.237, 0.763].
    The standard error is sqrt(p(1-p)/n).

    Raises:
        InputError: n below 1, or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n}.", "Give 0 <= successes <= n, n >= 1.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the two terms are equal in the reals, but not always in floats.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Estimate(p, float(np.sqrt(p * (1 - p) / n)), low, high, n)


def bootstrap_statistic(
    statistic: Callable[..., float],
    groups: Sequence[NDArray[np.float64]],
    *,
    confidence: float = 0.95,
    rounds: int = 500,
    seed: int = 0,
) -> Estimate:
    """A statistic of several independent groups, each resampled on its own (members, non-members).

    The standard error is the standard deviation of the resampled statistic.
    """
    arrays = [_values(group) for group in groups]
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = [
        statistic(*(array[random.integers(0, len(array), len(array))] for array in arrays))
        for _ in range(rounds)
    ]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    total = sum(len(array) for array in arrays)
    return Estimate(
        float(statistic(*arrays)), float(np.std(drawn, ddof=1)), float(low), float(high), total
    )
