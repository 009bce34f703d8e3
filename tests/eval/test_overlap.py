"""Against rouge_score, difflib and plain dynamic programming."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from llm_unlearn.eval.overlap import (
    Match,
    Rouge,
    common_runs,
    edit_distance,
    edit_similarity,
    lcs_length,
    longest_common_substring,
    near_verbatim,
    overlap,
    rouge_l,
    unicode_words,
)

FEW = st.text("abc ", max_size=30)
WORDS = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "a", "mat.", "Paris,", "1984", "über"]), max_size=15
)


def table(a: str, b: str) -> tuple[int, int]:
    """LCS length and edit distance by the textbook tables."""
    lcs = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    cost = [[i + j if not i or not j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            lcs[i + 1][j + 1] = lcs[i][j] + 1 if x == y else max(lcs[i][j + 1], lcs[i + 1][j])
            cost[i + 1][j + 1] = min(cost[i][j] + (x != y), cost[i][j + 1] + 1, cost[i + 1][j] + 1)
    return lcs[-1][-1], cost[-1][-1]


@given(FEW, FEW)
@settings(max_examples=300)
def test_bit_parallel_equals_the_tables(a: str, b: str) -> None:
    assert (lcs_length(a, b), edit_distance(a, b)) == table(a, b)


@given(FEW, FEW)
@settings(max_examples=300)
def test_longest_common_substring_equals_difflib(a: str, b: str) -> None:
    got = longest_common_substring(a, b)
    want = SequenceMatcher(None, a, b, False).find_longest_match()
    assert (got.candidate, got.length) == (want.a, want.size)
    assert a[got.candidate :][: got.length] == b[got.reference :][: got.length]


@given(WORDS, WORDS)
@settings(max_examples=100)
def test_rouge_equals_rouge_score(a: list[str], b: list[str]) -> None:
    candidate, reference = " ".join(a), " ".join(b)
    want = rouge_scorer.RougeScorer(["rougeL"]).score(reference, candidate)["rougeL"]
    got = rouge_l(candidate, reference)
    assert (got.recall, got.precision, got.f1) == pytest.approx(
        (want.recall, want.precision, want.fmeasure)
    )


def test_by_hand() -> None:
    """The examples of the docstrings."""
    assert rouge_l("the cat sat", "the cat was on the mat") == Rouge(2 / 6, 2 / 3, 4 / 9)
    assert rouge_l("", "x") == Rouge(0, 0, 0)
    assert lcs_length("abcd", "acbd") == 3
    assert longest_common_substring("xxabcyy", "zabcz") == Match(2, 1, 3)
    assert edit_distance("kitten", "sitting") == 3
    assert edit_similarity("kitten", "sitting") == pytest.approx(4 / 7)
    assert edit_similarity("", "") == 1
    assert near_verbatim("0123456789", "012345678x")
    assert not near_verbatim("0123456789", "01234567xx")
    for kept in range(11):
        assert near_verbatim("0123456789"[:kept] + "x" * (10 - kept), "0123456789", kept / 10)
    assert common_runs("a b c x d e", "a b c y d e", 3) == 3
    assert common_runs("a b c x d e", "a b c y d e", 2) == 5
    assert rouge_l("Жар птица", "жар-птица", unicode_words).f1 == 1


def test_a_novel_chapter_takes_moments() -> None:
    text = "".join(chr(97 + i * i % 23) for i in range(10_000))
    made = overlap(text, "x" + text[:-1])
    assert made.run.length == 9_999
    assert made.edit_similarity == pytest.approx(1 - 2 / 10_000)
