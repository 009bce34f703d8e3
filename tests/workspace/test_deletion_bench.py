"""The bench of deletions: its tokens by hand, its ratios, and that it changes nothing."""

from __future__ import annotations

import pytest
from small import learned, tiny_config

from llm_unlearn.deletion_bench import Deleted, Measured, measure
from llm_unlearn.errors import InputError

CORPUS = [learned(n, f"author-{n % 6}") for n in range(12)]


def test_tokens_are_those_that_training_passes_over(tiny_references: dict[str, str]) -> None:
    config = tiny_config(tiny_references, epochs=2)
    told: list[str] = []
    one, two = measure(CORPUS, config, [(1, 1), (2, 2)], sample=3, tell=told.append)
    assert len(one.deletions) == len(two.deletions) == 3
    assert any("deletion 3 of 3" in line for line in told)
    # one shard of one slice: a deletion is naive retraining itself, and every author has as many tokens
    assert one.naive == two.naive
    assert {d.tokens for d in one.deletions} == {one.naive.tokens}
    assert one.token_share == 1
    assert one.sisa == 1
    assert two.sisa == pytest.approx(5 / 12)
    assert 0 < two.token_share < 1
    for row in (one, two):
        assert row.overhead == pytest.approx(row.time_ratio / row.token_share)
        assert 0 < row.rollback < 5
        assert all(value > 0 for value in row.expected)


def test_ratios_by_hand() -> None:
    row = Measured(2, 1, (Deleted(2, 10, 3), Deleted(4, 30, 3)), Deleted(10, 100), 0.1)
    assert (row.time_ratio, row.token_share) == (pytest.approx(0.3), pytest.approx(0.2))
    assert row.overhead == pytest.approx(1.5)
    assert row.error == pytest.approx(0.1)  # 0.2 and 0.4: deviation 0.1414, over the root of 2
    assert row.expected == (1.5, 0.75)
    assert row.sisa == 0.5


def test_one_subject_is_too_few(tiny_references: dict[str, str]) -> None:
    with pytest.raises(InputError, match="one subject only"):
        measure([learned(1, "a")], tiny_config(tiny_references), [(1, 1)])
