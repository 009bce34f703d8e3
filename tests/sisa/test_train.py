"""One stage of training: bit-exact, resumable through its state, and equal to plain AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lora import AdapterHost, LoraShape
from llm_unlearn.sisa.checkpoints import deserialise, serialise
from llm_unlearn.sisa.train import (
    Prepared,
    StageSettings,
    TrainState,
    cut_batches,
    schedule,
    train_stage,
)

SETTINGS = StageSettings(
    epochs=2, batch_size=2, learning_rate=1e-2, warmup=0.1, weight_decay=0.0, clip=1.0
)


def _examples(seed: int, count: int) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(5, 200, (6 + i,), generator=generator).tolist()
        made.append(Example(tuple(ids), (False,) * 3 + (True,) * (3 + i)))
    return made


def _host(reference: str, top: int | None = 2) -> AdapterHost:
    return AdapterHost(load_causal(reference, "float32"), LoraShape(4, 8, top))


def _same(a: TrainState, b: TrainState) -> bool:
    return serialise(a) == serialise(b)


def test_the_same_inputs_give_the_same_bits(tiny_references: dict[str, str]) -> None:
    parts = [_examples(1, 5), _examples(2, 3)]
    results = []
    for noise in (0, 1):
        host = _host(tiny_references["llama"])
        torch.manual_seed(noise)
        start = TrainState(host.fresh(b"s"), {}, 0)
        middle = train_stage(host, start, parts[:1], SETTINGS, b"one")
        results.append(train_stage(host, middle, parts, SETTINGS, b"two"))
    assert _same(*results)


def test_a_checkpoint_holds_everything_the_next_stage_needs(
    tiny_references: dict[str, str],
) -> None:
    """Going on from the bytes of a checkpoint equals going on from memory."""
    parts = [_examples(1, 4), _examples(2, 4)]
    host = _host(tiny_references["qwen"])
    first = train_stage(host, TrainState(host.fresh(b"s"), {}, 0), parts[:1], SETTINGS, b"one")
    going_on = train_stage(host, first, parts, SETTINGS, b"two")
    other = _host(tiny_references["qwen"])
    resumed = train_stage(other, deserialise(serialise(first)), parts, SETTINGS, b"two")
    assert _same(going_on, resumed)
    without = TrainState(first.adapter, {}, 0)
    assert not _same(going_on, train_stage(other, without, parts, SETTINGS, b"two"))


def test_padding_and_the_frozen_prefix_change_nothing(tiny_references: dict[str, str]) -> None:
    """Against a reference written plainly: the whole model, one text at a time, AdamW by hand."""
    examples = _examples(3, 2)
    settings = StageSettings(
        epochs=1, batch_size=2, learning_rate=1e-2, warmup=0.0, weight_decay=0.0, clip=1e9
    )
    host = _host(tiny_references["llama"])
    start = host.fresh(b"s")
    ours = train_stage(host, TrainState(start, {}, 0), [examples], settings, b"x")
    host.load(start)
    total, count = torch.zeros(()), 0
    for example in examples:
        ids = torch.tensor([example.ids])
        logp = torch.log_softmax(host.model(input_ids=ids).logits[0].float(), -1)
        for position, predicted in enumerate(example.loss):
            if predicted:
                total = total - logp[position - 1, example.ids[position]]
                count += 1
    gradients = torch.autograd.grad(total / count, host.parameters())
    for name, gradient in zip(host.names, gradients, strict=True):
        # AdamW's first step from zero moments: m / (1 - b1) = g, sqrt(v / (1 - b2)) = |g|
        expected: Tensor = start[name] - 1e-2 * gradient / (gradient.abs() + 1e-8)
        moved = gradient.abs() > 1e-6  # below that, float noise decides the sign
        torch.testing.assert_close(ours.adapter[name][moved], expected[moved], rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen"])
@pytest.mark.parametrize("top", [1, None])
def test_training_learns_on_every_architecture(
    tiny_references: dict[str, str], kind: str, top: int | None
) -> None:
    host = _host(tiny_references[kind], top)
    losses: list[float] = []
    settings = StageSettings(20, 2, 2e-2, 0.1, 0.0, 1.0)
    train_stage(
        host,
        TrainState(host.fresh(b"s"), {}, 0),
        [_examples(1, 4)],
        settings,
        b"x",
        lambda loss, _tokens: losses.append(loss),
    )
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_learns_in_bfloat16(tiny_references: dict[str, str], kind: str) -> None:
    """The second pass sees the weights of the first, and weights stay float32."""
    host = AdapterHost(load_causal(tiny_references[kind], "bfloat16"), LoraShape(4, 8, 2))
    losses: list[float] = []
    end = train_stage(
        host,
        TrainState(host.fresh(b"s"), {}, 0),
        [_examples(1, 4)],
        StageSettings(20, 2, 2e-2, 0.1, 0.0, 1.0),
        b"x",
        lambda loss, _tokens: losses.append(loss),
    )
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert {tensor.dtype for tensor in (end.adapter | end.moments).values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batches_kept_from_an_earlier_stage_change_no_bit(
    tiny_references: dict[str, str], kind: str
) -> None:
    parts = [_examples(1, 5), _examples(2, 3)]
    host = _host(tiny_references[kind])
    start = TrainState(host.fresh(b"s"), {}, 0)
    kept: Prepared = {}
    first = train_stage(host, start, parts[:1], SETTINGS, b"one", prepared=kept)
    with_kept = train_stage(host, first, parts, SETTINGS, b"two", prepared=kept)
    assert len(kept) == 5
    assert _same(with_kept, train_stage(host, first, parts, SETTINGS, b"two"))


def test_batches_are_cut_by_length_inside_one_slice() -> None:
    examples = [Example((1,) * n, (False,) + (True,) * (n - 1)) for n in (5, 3, 4, 3)]
    assert cut_batches(examples, 3) == [[1, 3, 2], [0]]


def test_the_schedule_by_hand() -> None:
    """Ten steps, two of warm-up: 1/2, 1, then down by 0.9/8 a step."""
    assert [round(schedule(i, 10, 0.2), 4) for i in (0, 1, 2, 3, 9)] == [
        0.5,
        1.0,
        1.0,
        0.8875,
        0.2125,
    ]
    assert schedule(0, 1, 0.05) == 1.0
