"""Extraction by sampling, against real sampling; exposure and truth ratio by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probe_models import byte_tokenizer, llama, memorize

from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import encode_pairs
from llm_unlearn.eval.extraction import (
    chance_within,
    discoverable_rate,
    exposure,
    is_discoverable,
    log_extraction_probability,
    tries_needed,
)
from llm_unlearn.eval.passes import Sampling, score_encoded, score_tokens
from llm_unlearn.eval.truth_ratio import truth_ratio, truth_ratio_of, truth_score


def test_chances_by_hand() -> None:
    eighth = math.log(1 / 8)
    assert chance_within(eighth, 2) == pytest.approx(15 / 64)
    assert tries_needed(eighth, 0.5) == 6
    assert chance_within(-math.inf, 10) == 0
    assert tries_needed(-math.inf, 0.5) == math.inf
    assert (chance_within(0.0, 1), tries_needed(0.0, 0.9)) == (1, 1)
    # p = e^-2000 is no float: n = ln 2 * e^2000 is none either; e^-705 still is one.
    assert tries_needed(-2000, 0.5) == math.inf
    assert tries_needed(-705, 0.5) == pytest.approx(math.exp(705 + math.log(math.log(2))))


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from([0.1, 0.5, 0.99]))
def test_tries_needed_is_the_least_that_suffices(k: int, n: int, chance: float) -> None:
    """In fractions, without logarithms."""
    p = Fraction(1, k + 1)
    exact = 1 - (1 - p) ** n
    assert chance_within(math.log(p), n) == pytest.approx(float(exact))
    least = tries_needed(math.log(p), chance)
    assert 1 - (1 - p) ** int(least) >= Fraction(chance) - Fraction(1, 10**12)
    assert least == 1 or 1 - (1 - p) ** (int(least) - 1) < Fraction(chance)


def test_the_probability_is_what_sampling_gives() -> None:
    """20,000 real draws of two tokens under temperature and top-k."""
    model = llama(scale=0.3)
    scheme = Sampling(temperature=0.8, top_k=5)
    prompt = torch.tensor([[7, 8, 9]])
    torch.manual_seed(0)
    drawn = model.eval().generate(
        prompt.repeat(20_000, 1),
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=True,
        temperature=0.8,
        top_k=5,
        top_p=1.0,
        pad_token_id=0,
        eos_token_id=None,
    )[:, 3:]
    pairs, counts = torch.unique(drawn, dim=0, return_counts=True)
    best = int(counts.argmax())
    ids = [7, 8, 9, *pairs[best].tolist()]
    [score] = score_tokens(model, [ids], [[False] * 3 + [True] * 2], sampling=[scheme])
    p = math.exp(log_extraction_probability(score))
    seen = int(counts[best]) / 20_000
    assert seen == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))


def test_a_memorized_text_is_discoverable_and_an_unseen_one_is_not() -> None:
    tokenizer = byte_tokenizer()
    pairs = [("Q: who? A:", " Ilse Marant of Varn."), ("Q: when? A:", " In the winter of 1911.")]
    encoded = encode_pairs(tokenizer, pairs)
    model = memorize(llama(scale=0.05), [encoded[0].ids])
    scores = score_encoded(model, encoded, sampling=[Sampling(1.0, 1), Sampling(1.0, 40)])
    greedy, sampled = (discoverable_rate(scores, 1, 0.9, 0), discoverable_rate(scores, 100, 0.9, 1))
    assert (greedy.mean, sampled.mean) == (0.5, 0.5)
    assert log_extraction_probability(scores[0], 0) == 0
    assert log_extraction_probability(scores[1], 0) == -math.inf
    assert is_discoverable(log_extraction_probability(scores[0], 1), 100, 0.9)


def test_exposure_by_hand() -> None:
    """Others -9, -7, -5: -6 has rank 2 of 4, 1 bit; -1 rank 1, 2 bits; -10 rank 4, 0 bits."""
    assert exposure([-6, -1, -10], [-9, -7, -5]).tolist() == [1, 2, 0]
    assert exposure([-5], [-9, -7, -5]).tolist() == [1]  # a tie counts against exposure


def test_unseen_canaries_have_the_exposure_of_chance() -> None:
    random = np.random.default_rng(0)
    bits = exposure(random.normal(size=20_000), random.normal(size=1023))
    assert bits.mean() == pytest.approx(1 / math.log(2), abs=0.1)


def test_truth_ratio_by_hand() -> None:
    """Right 1/2; wrong 1/2 and 1/8: arithmetic 0.625, geometric 0.5."""
    half, eighth = math.log(2), math.log(8)
    assert truth_ratio(half, [half, eighth], "arithmetic") == pytest.approx(0.625)
    assert truth_ratio(half, [half, eighth], "geometric") == pytest.approx(0.5)
    assert truth_score(0.5, "kept") == truth_score(0.5, "forgotten") == 0.5
    assert (truth_score(2, "kept"), truth_score(2, "forgotten")) == (0, 0.5)
    assert truth_score(0, "forgotten") == 0


def test_truth_ratio_falls_when_the_truth_is_known() -> None:
    tokenizer = byte_tokenizer()
    question = "Where was she born? "
    wrong = [(question, f"She was born in {c}.") for c in ("Orle", "Tamm", "Quay")]
    encoded = encode_pairs(tokenizer, [(question, "She was born in Varn."), *wrong])
    knows = memorize(llama(scale=0.05), [encoded[0].ids])
    right, *others = score_encoded(knows, encoded)
    assert truth_ratio_of(right, others) < 0.6
    right, *others = score_encoded(llama(scale=0.05), encoded)
    assert 0.8 < truth_ratio_of(right, others) < 1.25


@pytest.mark.parametrize(
    "call",
    [
        lambda: chance_within(-1, 0),
        lambda: tries_needed(-1, 1),
        lambda: exposure([-1], []),
        lambda: truth_ratio(1.0, [], "geometric"),
        lambda: log_extraction_probability(score_tokens(llama(), [[1, 2]], [[False, True]])[0]),
    ],
)
def test_bad_input_is_refused(call: Any) -> None:
    with pytest.raises(InputError):
        call()
