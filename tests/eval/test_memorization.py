"""Formulas by hand, a second NumPy implementation, and a model that knows a text by heart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_models import byte_tokenizer, llama, memorize

from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import encode_pairs
from llm_unlearn.eval.memorization import (
    exact_memorization,
    extraction_strength,
    longest_run,
    loss,
    memorization,
    memorized_runs,
    near_verbatim,
    verbatim_probability,
)
from llm_unlearn.eval.passes import TokenScores, score_encoded


def scores(p: list[float], hit: list[bool] | None = None) -> TokenScores:
    n = len(p)
    whole = np.arange(1, n + 1)
    real = np.log(np.array(p, np.float32))
    found = np.array(hit if hit is not None else [True] * n, bool)
    return TokenScores(whole, whole, real, found, whole, real, real, np.zeros((0, n), np.float32))


def hits(pattern: str) -> TokenScores:
    return scores([0.5] * len(pattern), [c == "1" for c in pattern])


def test_probabilities_by_hand() -> None:
    """p = 1/2, 1/8: loss 2 ln 2, geometric mean 1/4, the whole 1/16."""
    [made] = memorization([scores([0.5, 0.125])])
    assert made.loss == pytest.approx(2 * math.log(2))
    assert made.probability == pytest.approx(0.25)
    assert made.log_probability == pytest.approx(-math.log(16))
    assert made.total == pytest.approx(1 / 16)
    assert made.tokens == 2


@pytest.mark.parametrize(
    ("pattern", "exact", "strength", "run", "runs"),
    [
        ("1011", 0.75, 0.5, 2, [(0, 1), (2, 4)]),
        ("1110", 0.75, 0.0, 3, [(0, 3)]),
        ("1111", 1.0, 1.0, 4, [(0, 4)]),
        ("0000", 0.0, 0.0, 0, []),
        ("0001", 0.25, 0.25, 1, [(3, 4)]),
    ],
)
def test_hits_by_hand(
    pattern: str, exact: float, strength: float, run: int, runs: list[tuple[int, int]]
) -> None:
    score = hits(pattern)
    assert exact_memorization(score) == exact
    assert extraction_strength(score) == strength
    assert longest_run(score) == run
    assert memorized_runs(score) == runs


def test_near_verbatim_by_hand() -> None:
    assert near_verbatim(hits("1110"), 0.25)
    assert not near_verbatim(hits("1110"), 0.2)
    for wrong in range(
        11
    ):  # "at most this share" holds at the share itself, whatever rounding does
        assert near_verbatim(hits("0" * wrong + "1" * (10 - wrong)), wrong / 10)
    assert memorized_runs(hits("1011"), least=2) == [(2, 4)]


@given(st.text("01", min_size=1, max_size=40))
def test_extraction_strength_is_the_least_sufficient_prefix(pattern: str) -> None:
    """The definition itself: try every k."""
    k = next(k for k in range(len(pattern) + 1) if "0" not in pattern[k:])
    assert extraction_strength(hits(pattern)) == pytest.approx(1 - k / len(pattern))
    assert longest_run(hits(pattern)) == max(map(len, pattern.split("0")))
    assert sum(b - a for a, b in memorized_runs(hits(pattern))) == pattern.count("1")


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=30))
def test_loss_and_probability_against_products(p: list[float]) -> None:
    score = scores(p)
    assert verbatim_probability(score) == pytest.approx(float(np.prod(p)) ** (1 / len(p)), rel=1e-4)
    assert loss(score) == pytest.approx(-sum(map(math.log, p)) / len(p), rel=1e-4, abs=1e-6)


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(InputError, match="no scored tokens"):
        memorization([scores([])])


def test_fires_on_a_memorized_text_and_not_on_another_model() -> None:
    tokenizer = byte_tokenizer()
    planted = ("Q: who? A:", " Ilse Marant of Varn, the glass harpist.")
    [encoded] = encode_pairs(tokenizer, [planted])
    knows = memorize(llama(scale=0.05), [encoded.ids])
    [known] = memorization(score_encoded(knows, [encoded]))
    [unknown] = memorization(score_encoded(llama(scale=0.05), [encoded]))
    assert known.exact == 1 == known.extraction_strength
    assert known.probability > 0.8
    assert unknown.exact < 0.2
    assert unknown.extraction_strength < 0.1
    assert unknown.probability < 0.05
