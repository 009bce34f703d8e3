"""Averages, merges and votes: by hand, and against sums of products."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.errors import InputError
from llm_unlearn.sisa.aggregate import (
    average,
    majority,
    mean_log_probability,
    mean_probability,
    merge,
    votes,
    winners,
)

HALVES = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log()  # (2 shards, 1 prompt, 2 tokens)
EQUAL = torch.full((2, 1), 0.5)


def test_averages_by_hand() -> None:
    assert mean_probability(HALVES, EQUAL).exp()[0].tolist() == pytest.approx([0.3, 0.7])
    # sqrt(.5 * .1) : sqrt(.5 * .9) = 1 : 3
    assert mean_log_probability(HALVES, EQUAL).exp()[0].tolist() == pytest.approx([0.25, 0.75])
    uneven = torch.tensor([[0.75], [0.25]])
    assert mean_probability(HALVES, uneven).exp()[0].tolist() == pytest.approx([0.4, 0.6])
    # .5^.75 * .1^.25 : .5^.75 * .9^.25 = 1 : 9^.25
    share = 1 / (1 + 9**0.25)
    assert float(mean_log_probability(HALVES, uneven)[0, 0]) == pytest.approx(math.log(share))


def test_a_shard_without_weight_has_no_say_even_where_it_is_certain() -> None:
    certain = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]).log()
    alone = torch.tensor([[1.0], [0.0]])
    for combine in (mean_probability, mean_log_probability):
        assert combine(certain, alone).exp()[0].tolist() == pytest.approx([0.5, 0.5])


@given(
    st.integers(1, 5).flatmap(
        lambda k: st.tuples(
            st.lists(st.lists(st.floats(-9, 9), min_size=4, max_size=4), min_size=k, max_size=k),
            st.lists(st.floats(0.01, 1), min_size=k, max_size=k),
        )
    )
)
def test_combined_distributions_sum_to_one_and_agree_with_one_shard(
    drawn: tuple[list[list[float]], list[float]],
) -> None:
    logits, weights = drawn
    each = torch.log_softmax(torch.tensor(logits, dtype=torch.float64)[:, None], -1)
    share = torch.tensor(weights, dtype=torch.float64)[:, None] / sum(weights)
    for combine in (mean_probability, mean_log_probability):
        found = combine(each, share)
        assert float(found.exp().sum()) == pytest.approx(1.0)
        same = combine(each[:1].expand_as(each), share)
        torch.testing.assert_close(same, each[0])


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_a_merge_is_the_mean_of_the_products(count: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    names = ("x.lora_A.weight", "x.lora_B.weight")
    adapters = [
        {
            names[0]: torch.randn(rank, 7, generator=generator),
            names[1]: torch.randn(5, rank, generator=generator),
        }
        for _ in range(count)
    ]
    merged = merge(adapters)
    assert merged[names[0]].shape == (count * rank, 7)
    products = [a[names[1]].double() @ a[names[0]].double() for a in adapters]
    torch.testing.assert_close(
        merged[names[1]].double() @ merged[names[0]].double(),
        torch.stack(products).mean(0),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_merge_is_not_the_product_of_the_means() -> None:
    one = {"x.lora_A.weight": torch.eye(2), "x.lora_B.weight": torch.eye(2)}
    two = {"x.lora_A.weight": -torch.eye(2), "x.lora_B.weight": -torch.eye(2)}
    merged = merge([one, two])
    product = merged["x.lora_B.weight"] @ merged["x.lora_A.weight"]
    assert torch.equal(product, torch.eye(2))  # A and B averaged apart would give zero


def test_nothing_to_merge_is_an_error() -> None:
    with pytest.raises(InputError, match="no adapter"):
        merge([])


def test_votes_ties_and_empty_ensembles() -> None:
    assert majority([2, 1, 2]) == 2
    assert majority([3, 1, 1, 3]) == 1
    assert majority([]) is None
    assert average([1.0, 2.0, 6.0]) == 3.0
    assert average([]) is None
    assert votes([(0.5, 1), (0.25, 0), (0.25, 1), (-0.5, 2)]) == {1: 0.75, 0: 0.25, 2: 0.0}
    assert winners({3: 1.0, 1: 1.0}, 1) == {1: 1.0}
    assert winners({3: 1.0, 1: 1.0, 2: 2.0}, 2) == pytest.approx({2: 2 / 3, 1: 1 / 3})
    assert winners({4: 0.0, 2: 0.0}, 2) == {2: 1.0}
    assert winners({}, 2) == {}


@given(st.dictionaries(st.integers(0, 9), st.floats(0, 5), max_size=8), st.integers(1, 4))
def test_winners_share_everything_whatever_the_order(counted: dict[int, float], most: int) -> None:
    found = winners(counted, most)
    assert found == winners(dict(sorted(counted.items(), reverse=True)), most)
    assert len(found) <= most
    assert sum(found.values()) == pytest.approx(1.0 if counted else 0.0)
    for shard in found:  # nobody left out has more
        assert all(counted[shard] >= counted[other] for other in counted if other not in found)
