"""The planner's formulas by hand, and against what our own layout does with random demands."""

from __future__ import annotations

import hashlib
import random
import statistics
from dataclasses import replace
from fractions import Fraction

import pytest

from llm_unlearn.config import TrainingConfig
from llm_unlearn.config_placement import PlacementConfig
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.build import shard_states, stage_settings, visits
from llm_unlearn.sisa.checkpoints import Listed
from llm_unlearn.sisa.layout import Declared, Layout, slices
from llm_unlearn.sisa.planner import (
    Risk,
    Workload,
    estimate,
    passes_per_stage,
    propose,
    retrained_share,
    table,
    whole_share,
)


@pytest.mark.parametrize("r", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("s", [1, 2, 8])
def test_one_demand_costs_what_sisa_says(s: int, r: int) -> None:
    even = table(s, r, None, "hash")
    share = retrained_share(even, 1, "cumulative") / whole_share(even, "cumulative")
    assert share == pytest.approx(float(Fraction(2 * r + 1, 3 * r) / s))
    share = retrained_share(even, 1, "sequential") / whole_share(even, "sequential")
    assert share == pytest.approx(float(Fraction(r + 1, 2 * r) / s))


def test_a_batch_costs_what_sisa_says() -> None:
    even = table(10, 1, None, "hash")
    assert retrained_share(even, 7, "cumulative") == pytest.approx(1 - 0.9**7)
    # three slices, one shard, two demands by hand: P(min <= i) = 1 - ((3 - i) / 3)^2 = 5/9, 8/9, 1
    three = table(1, 3, None, "hash")
    by_hand = Fraction(5, 9) / 3 + Fraction(8, 9) * 2 / 3 + 1
    assert retrained_share(three, 2, "cumulative") == pytest.approx(float(by_hand))


def test_tokens_by_hand() -> None:
    # 800 documents of 100 tokens, 8 shards, 3 slices, 12 epochs: 6 passes a stage. A demand costs
    # 7/9 of a shard's training, which is 6 (1 + 2 + 3)/3 = 12 passes over 10,000 tokens: 93,333
    load = Workload(800, 100, 30, epochs=12, parameters=1000, tokens_per_second=50)
    found = estimate(load, 8, 3)
    assert found.passes == 6
    assert found.deletion.tokens == pytest.approx(7 / 9 * 12 * 10_000)
    assert found.deletion.seconds == pytest.approx(7 / 9 * 12 * 200)
    assert found.training.share == pytest.approx(1)
    assert found.one_by_one.tokens == pytest.approx(30 * found.deletion.tokens)
    assert found.batched.tokens < found.one_by_one.tokens
    assert (found.checkpoints, found.storage) == (24, 24 * 3 * 4 * 1000)


@pytest.mark.parametrize("slices", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("epochs", [1, 5, 12])
def test_passes_are_those_of_training(epochs: int, slices: int) -> None:
    training = TrainingConfig(epochs=epochs, slices=slices)
    assert passes_per_stage(epochs, slices, "cumulative") == stage_settings(training).epochs


def _mark(*value: object) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()[:16]


def _simulated(
    shards: int, parts: int, demands: int, placement: PlacementConfig, risk: Risk | None
) -> list[float]:
    """Passes over documents after random demands, by the layout and the build themselves."""
    count, runs = 600, 60
    training = TrainingConfig(shards=shards, slices=parts, placement=placement)
    chance = random.Random(7)
    found = []
    for run in range(runs):
        layout = Layout(_mark("key", run) * 2, shards, parts, placement)
        records = [
            Record(_mark(n), _mark("s", n), b"s" * 16, _mark(n), "corpus", "live", 1, n)
            for n in range(count)
        ]
        likely = [n < count * risk.subjects if risk else False for n in range(count)]
        said = {r.handle: Declared(risk=0.9 if likely[r.slot] else 0.0) for r in records}
        weights = [
            (
                risk.demands / sum(likely)
                if likely[n]
                else (1 - risk.demands) / (count - sum(likely))
            )
            if risk
            else 1.0
            for n in range(count)
        ]
        gone = set(chance.choices(range(count), weights, k=demands))
        before = slices(layout, b"r" * 32, records, said)
        listed = {
            p.name: Listed(p.name, s, p.inputs, 0) for s, parts_ in before.items() for p in parts_
        }
        after = slices(layout, b"r" * 32, [r for r in records if r.slot not in gone], said)
        spent = sum(
            len(group) * times
            for state in shard_states(after, listed)
            for group, times in visits(state, training)
        )
        found.append(spent / stage_settings(training).epochs / count)
    return found


@pytest.mark.parametrize(
    ("shards", "parts", "demands", "place_by"),
    [
        (4, 3, 1, "hash"),
        (8, 4, 10, "hash"),
        (1, 5, 3, "hash"),
        (4, 4, 5, "risk-slices"),
        (6, 2, 5, "risk-shards"),
    ],
)
def test_the_formula_is_what_the_layout_does(
    shards: int, parts: int, demands: int, place_by: str
) -> None:
    risk = Risk(0.1, 0.8) if place_by != "hash" else None
    placement = PlacementConfig()
    if place_by == "risk-slices":
        placement = PlacementConfig(slice_by="risk", risk_cuts=(0.5,))
    elif place_by == "risk-shards":
        placement = PlacementConfig(shard_by="risk", risk_cuts=(0.5,))
    found = _simulated(shards, parts, demands, placement, risk)
    expected = retrained_share(table(shards, parts, risk, place_by), demands, "cumulative")  # type: ignore[arg-type]
    error = statistics.stdev(found) / len(found) ** 0.5
    # four standard errors, and a hundredth for the removed documents themselves
    assert abs(statistics.mean(found) - expected) < 4 * error + 0.01 * expected


def test_risk_placed_by_risk_costs_less() -> None:
    load = Workload(1000, 100, 20, tokens_per_second=100, risk=Risk(0.1, 0.8))
    hashed = estimate(load, 8, 4)
    for place_by in ("risk-slices", "risk-shards"):
        better = estimate(Workload(**{**vars(load), "place_by": place_by}), 8, 4)
        assert better.deletion.tokens < hashed.deletion.tokens


def test_proposals_keep_within_the_budget_with_the_fewest_shards_first() -> None:
    load = Workload(2000, 80, 40, tokens_per_second=900)
    budget = estimate(load, 6, 3).one_by_one.seconds
    assert budget is not None
    found = list(propose(load, budget, most_shards=12))
    assert [e.shards for e in found] == sorted({e.shards for e in found})
    assert found[0].shards <= 6
    for e in found:
        assert e.one_by_one.seconds is not None
        assert e.one_by_one.seconds <= budget
        if e.slices > 1:
            less = estimate(load, e.shards, e.slices - 1).one_by_one.seconds
            assert less is not None
            assert less > budget
    fewer = estimate(load, found[0].shards - 1, 16).one_by_one.seconds
    assert fewer is not None
    assert fewer > budget


def test_orders_multiply_the_training_and_blocks_divide_the_room() -> None:
    """8 shards of 4 slices: 3 numbers for each of 32 checkpoints; 2 orders of blocks: 16 adapters."""
    load = Workload(600, 80.0, 10, parameters=1000)
    plain = estimate(load, 8, 4)
    assert (plain.storage, plain.checkpoints, plain.survived) == (32 * 3 * 4 * 1000, 32, 4.0)
    both = estimate(replace(load, orders=2, blocks=True), 8, 4)
    assert (both.storage, both.checkpoints, both.survived) == (16 * 4 * 1000, 64, 6.0)
    assert both.deletion.tokens == 2 * plain.deletion.tokens
