"""The bench of orders: room, survival and knowledge of four ways to slice a shard."""

from __future__ import annotations

import pytest
from small import learned, tiny_config

from llm_unlearn import Document
from llm_unlearn.errors import InputError
from llm_unlearn.orders_bench import measure


def test_blocks_need_less_room_and_orders_survive_more(tiny_references: dict[str, str]) -> None:
    config = tiny_config(tiny_references, slices=3, top_layers=3, epochs=4)
    documents = [learned(n, f"author-{n}") for n in range(18)]
    ways = measure(documents, config, 3, deletions=2, lives=2)
    by = {(w.orders, w.blocks): w for w in ways}
    assert list(by) == [(1, False), (1, True), (3, False), (3, True)]
    # a plain checkpoint is an adapter and two moments, three of them; blocks are one adapter
    assert by[1, False].storage / by[1, True].storage > 4
    assert by[3, True].storage < 3.2 * by[1, True].storage
    for blocks in (False, True):
        one, three = by[1, blocks], by[3, blocks]
        assert three.survived.mean > one.survived.mean + 3 * three.survived.standard_error
        # without replacement, slices are hit a little sooner than the formula says
        assert 0.7 * one.expected < one.survived.mean <= 1.1 * one.expected
        assert (one.survived.n, one.known.n, len(one.left)) == (200, 18, 2)
    assert by[1, False].survived == by[1, True].survived  # the same slices


def test_what_cannot_be_measured_is_told(tiny_references: dict[str, str]) -> None:
    config = tiny_config(tiny_references)
    with pytest.raises(InputError, match="2 subjects are too few"):
        measure([learned(1, "a"), learned(2, "b")], config, 2)
    text = [Document(id=str(n), subject=str(n), text="words") for n in range(5)]
    with pytest.raises(InputError, match="not one question and one answer"):
        measure(text, config, 2)
