"""Rows that join and leave a running batch, against each prompt alone; draws by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_unlearn.models import scoring
from llm_unlearn.models.causal import generate, load_causal
from llm_unlearn.models.experts import Mixture, stack
from llm_unlearn.models.lanes import Lane
from llm_unlearn.models.lora import AdapterHost, AdapterState, LoraShape
from llm_unlearn.models.mixed import generate_mixed
from llm_unlearn.models.sampling import Sampler
from llm_unlearn.models.scoring import prompt_scores
from llm_unlearn.sisa.aggregate import mean_probability

KINDS = ("llama", "gpt2", "qwen")
PROMPTS = [[7, 40, 33, 90, 12, 55], [7, 40, 33], [33, 90, 12, 55, 33, 90, 12, 20], [91, 8]]
MOST = 6


def _host(reference: str) -> AdapterHost:
    return AdapterHost(load_causal(reference, "float32"), LoraShape(4, 8, 2))


def _adapters(host: AdapterHost, count: int) -> list[AdapterState]:
    generator = torch.Generator().manual_seed(0)
    fresh = host.fresh(b"shape")
    return [
        {n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in fresh.items()}
        for _ in range(count)
    ]


def _staggered(host: AdapterHost, slots: np.ndarray | None, arrivals: list[int]) -> list[list[int]]:
    """Decode each prompt from the step at which it arrives; rows leave after MOST tokens."""
    adapters = stack(host, _adapters(host, 3)) if slots is not None else None
    copies = 0 if slots is None else len(slots)

    def mixture(rows: list[int]) -> Mixture | None:
        if slots is None or adapters is None:
            return None
        weights = np.full((copies, len(rows)), 1 / copies)
        return Mixture(adapters, slots[:, rows], weights, mean_probability)

    lane = Lane(host, copies)
    said: list[list[int]] = [[] for _ in PROMPTS]
    here: list[int] = []
    for moment in range(max(arrivals) + MOST + 1):
        if here:
            logits = lane.step([said[row][-1] for row in here], mixture(here))
            for row, values in zip(here, logits, strict=True):
                said[row].append(int(values.argmax()))
        new = [row for row, arrival in enumerate(arrivals) if arrival == moment]
        if new:
            logits = lane.join([PROMPTS[row] for row in new], mixture(new))
            for row, values in zip(new, logits, strict=True):
                said[row].append(int(values.argmax()))
            here += new
        kept = [place for place, row in enumerate(here) if len(said[row]) < MOST]
        lane.keep(kept)
        here = [here[place] for place in kept]
        assert len(lane) == len(here)
    assert not here
    return said


def _until_stop(host: AdapterHost, tokens: list[list[int]]) -> list[list[int]]:
    stops = set(host.base.stop_ids)
    ends = [next((i for i, t in enumerate(row) if t in stops), len(row)) for row in tokens]
    return [row[:end] for row, end in zip(tokens, ends, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_come_and_go_say_what_each_says_alone(
    tiny_references: dict[str, str], kind: str
) -> None:
    host = _host(tiny_references[kind])
    with host.using(None):
        expected = [generate(host.base, [p], max_new_tokens=MOST)[0] for p in PROMPTS]
    for arrivals in ([0, 0, 0, 0], [0, 2, 1, 4], [5, 0, 3, 3], [0, 6, 12, 18]):
        assert _until_stop(host, _staggered(host, None, arrivals)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [1, 3])
def test_rows_with_adapters_too(tiny_references: dict[str, str], kind: str, copies: int) -> None:
    host = _host(tiny_references[kind])
    slots = np.array([[0, 1, 2, 1], [1, 2, 0, 0], [2, 0, 1, 2]])[:copies]
    adapters = stack(host, _adapters(host, 3))
    expected = [
        generate_mixed(
            host,
            adapters,
            [PROMPTS[i]],
            slots[:, [i]],
            np.full((copies, 1), 1 / copies),
            mean_probability,
            max_new_tokens=MOST,
        )[0]
        for i in range(len(PROMPTS))
    ]
    assert _until_stop(host, _staggered(host, slots, [0, 2, 1, 4])) == expected


@settings(max_examples=10)
@given(arrivals=st.lists(st.integers(0, 8), min_size=4, max_size=4))
def test_whenever_they_come(tiny_references: dict[str, str], arrivals: list[int]) -> None:
    host = _HOSTS.setdefault("llama", _host(tiny_references["llama"]))
    with host.using(None):
        expected = generate(host.base, PROMPTS, max_new_tokens=MOST)
    assert _until_stop(host, _staggered(host, None, arrivals)) == expected


_HOSTS: dict[str, AdapterHost] = {}


def test_what_left_is_out_of_the_cache(tiny_references: dict[str, str]) -> None:
    host = _host(tiny_references["llama"])
    lane = Lane(host)
    lane.join([PROMPTS[2], PROMPTS[1]])
    assert lane.width == 8
    lane.keep([1])
    assert (len(lane), lane.width) == (1, 3)
    assert all(layer.keys.shape[::2] == (1, 3) for layer in lane._cache.layers)
    lane.keep([])
    assert lane._cache is None


def test_draws_by_hand() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, -1.0]).log_softmax(-1)
    assert Sampler().draw(logits).token == 0
    assert Sampler().draw(logits, lambda token: token != 0).token == 1  # ties to the lower id
    assert Sampler().draw(logits, lambda token: False, end=3).token == 3
    told = Sampler(logprobs=2).draw(logits)
    assert told.logprob == pytest.approx(float(logits[0]))
    assert [token for token, _ in told.top] == [0, 1]
    first = [Sampler(1.0, seed=4).draw(logits).token for _ in range(3)]
    assert len(set(first)) == 1  # the seed alone decides
    sampler = Sampler(1.0, seed=5)
    drawn = [sampler.draw(logits).token for _ in range(4000)]
    for token in range(4):
        share, expected = drawn.count(token) / 4000, math.exp(float(logits[token]))
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 4000)
    # e^2 : e : e : 1/e is .57 : .21 : .21 : .03, so three quarters need two tokens
    narrow = Sampler(1.0, top_p=0.75, seed=6)
    assert {narrow.draw(logits).token for _ in range(300)} == {0, 1}
    hot = Sampler(0.25, seed=7)
    assert [hot.draw(logits).token for _ in range(300)].count(0) > 270


@pytest.mark.parametrize("copies", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_in_blocks_are_those_of_one_pass(
    tiny_references: dict[str, str], kind: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = _host(tiny_references[kind])
    mixture = None
    if copies:
        slots, weights = np.arange(copies)[:, None], np.full((copies, 1), 1 / copies)
        mixture = Mixture(stack(host, _adapters(host, 2)), slots, weights, mean_probability)
    ids = [(7 * n * n + 11) % 90 + 5 for n in range(37)]
    whole = prompt_scores(host, ids, mixture, 3)
    assert [one.token for one in whole] == ids[1:]
    for block in (1, 8, 36, 37):
        monkeypatch.setattr(scoring, "_BLOCK", block)
        cut = prompt_scores(host, ids, mixture, 3)
        assert [one.token for one in cut] == ids[1:]
        assert [one.logprob for one in cut] == pytest.approx(
            [one.logprob for one in whole], abs=1e-4
        )
        assert [len(one.top) for one in cut] == [3] * 36
