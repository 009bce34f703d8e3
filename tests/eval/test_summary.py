"""Intervals against scipy, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llm_unlearn.errors import InputError
from llm_unlearn.eval.summary import (
    bootstrap,
    bootstrap_statistic,
    paired_difference,
    sign_flip,
    wilson,
)


def test_bootstrap_by_hand() -> None:
    """1, 2, 3: mean 2, s = 1, standard error 1/sqrt(3)."""
    made = bootstrap([1, 2, 3])
    assert (made.mean, made.n) == (2, 3)
    assert made.standard_error == pytest.approx(3**-0.5)
    assert 1 <= made.low < 2 < made.high <= 3
    one = bootstrap([5])
    assert np.isnan(one.standard_error)
    assert (one.low, one.high) == (5, 5)


def test_flipped_signs_by_hand() -> None:
    """1, 2, 3: two of eight sums are 6 from 0. All of one sign: 2 / 2^n. Zeros say nothing."""
    assert sign_flip([1, 2, 3]) == 0.25
    assert sign_flip([5]) == 1
    assert sign_flip([-0.1] * 5) == 2 / 2**5
    assert sign_flip([0.1] * 6) == 2 / 2**6
    assert sign_flip([0, 0, 0]) == 1
    assert sign_flip([1, 1, 0, 0]) == 0.5
    # drawn ways: never 0, and near what all of them give
    assert sign_flip(np.ones(40)) == 1 / 10_001
    values = np.random.default_rng(1).normal(0.5, 1, 12)
    assert sign_flip(values, exact=0) == pytest.approx(sign_flip(values), abs=0.01)
    with pytest.raises(InputError):
        sign_flip([])


def test_flipped_signs_agree_with_scipy() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, 9)
    want = stats.permutation_test(
        (values,),
        lambda x: abs(x.mean()),
        permutation_type="samples",
        vectorized=False,
        alternative="greater",
        n_resamples=np.inf,
    )
    assert sign_flip(values) == pytest.approx(want.pvalue)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    made = bootstrap(values, rounds=8000)
    want = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=8000, rng=1)
    interval = want.confidence_interval
    assert made.low == pytest.approx(interval.low, abs=0.02)
    assert made.high == pytest.approx(interval.high, abs=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(50.0)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_large_samples_are_resampled_in_blocks() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    made = bootstrap(values, rounds=100)
    assert made.high - made.low == pytest.approx(2 * 1.96 / np.sqrt(100_000), rel=0.3)


def test_paired_difference_by_hand() -> None:
    """3 - 1 = 2 and 5 - 1 = 4: mean 3, s = sqrt(2), standard error 1."""
    made = paired_difference([3, 5], [1, 1])
    assert (made.mean, made.standard_error) == (3, pytest.approx(1))


@given(st.integers(1, 200), st.data())
def test_wilson_equals_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    made = wilson(k, n)
    want = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (made.low, made.high) == pytest.approx((want.low, want.high), abs=1e-9)
    assert 0 <= made.low <= made.mean <= made.high <= 1


def test_wilson_by_hand() -> None:
    """0 of 10: centre = half = z^2/20 / (1 + z^2/10) = 0.1388."""
    made = wilson(0, 10)
    assert (made.low, made.mean) == (0, 0)
    assert made.high == pytest.approx(0.2775, abs=1e-3)


def test_statistic_of_two_groups() -> None:
    made = bootstrap_statistic(
        lambda a, b: float(a.mean() - b.mean()), [np.ones(5), np.zeros(9)], rounds=50
    )
    assert (made.mean, made.low, made.high, made.standard_error, made.n) == (1, 1, 1, 0, 14)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap([]),
        lambda: bootstrap([1, float("nan")]),
        lambda: bootstrap([[1]]),
        lambda: paired_difference([1], [1, 2]),
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
    ],
)
def test_what_cannot_be_summarised_is_refused(call: Any) -> None:
    with pytest.raises(InputError):
        call()
