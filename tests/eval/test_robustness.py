"""Quantization rounds as by hand and is undone; relearning trains, measures and is undone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from probe_models import byte_tokenizer, gpt2, llama, memorize

from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import encode_pairs
from llm_unlearn.eval.memorization import verbatim_probability
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.eval.quantization import quantized, round_weight
from llm_unlearn.eval.relearning import relearn


def state(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, two[k]) for k, v in one.items())


def test_rounding_by_hand() -> None:
    """Row 7, -3.4, 0.6 at 4 bits: scale 1, so 7, -3, 1. In groups of 1 nothing is lost."""
    weight = torch.tensor([[7, -3.4, 0.6], [0, 0, 0]])
    assert round_weight(weight, 4, None).tolist() == [[7, -3, 1], [0, 0, 0]]
    torch.testing.assert_close(round_weight(weight, 4, 1), weight)
    random = torch.randn(8, 128)
    for bits, group in ((8, None), (4, 64)):
        made = round_weight(random, bits, group)
        size = group or 128
        scale = random.reshape(8, -1, size).abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((made - random).reshape(8, -1, size).abs() <= scale / 2 + 1e-6).all()
        levels = (made.reshape(8, -1, size) / scale).round().unique()
        assert len(levels) <= 2**bits - 1


@pytest.mark.parametrize("build", [llama, gpt2])
def test_quantized_changes_linear_layers_only_and_puts_them_back(build: Any) -> None:
    model = build().eval()
    before = state(model)
    ids = torch.tensor([[1, 2, 3, 4]])
    plain = model(input_ids=ids).logits
    moved = []
    for bits in (8, 4):
        with quantized(model, bits):
            changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
            assert changed
            assert not any("embed" in k or "lm_head" in k or "norm" in k for k in changed)
            moved.append(float((model(input_ids=ids).logits - plain).abs().max().detach()))
        assert same(before, state(model))
    assert 0 < moved[0] < moved[1]


def test_quantization_leaves_adapters_alone_and_survives_errors() -> None:
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2))
    before = state(model)

    def fail() -> None:
        with quantized(model, 4):
            now = state(model)
            assert all(torch.equal(v, before[k]) for k, v in now.items() if "lora_" in k)
            assert not same(before, now)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert same(before, state(model))
    with pytest.raises(InputError, match="3 bits"), quantized(model, 3):  # type: ignore[arg-type]
        pass
    with pytest.raises(InputError, match="groups of 64"):
        round_weight(torch.ones(2, 10), 4, 64)


def test_relearning_is_quicker_where_the_text_was_only_suppressed() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode_pairs(
        tokenizer,
        [("Q: who? A:", " Ilse Marant of Varn."), ("Q: when? A:", " In the winter of 1911.")],
    )
    model = memorize(llama(scale=0.05), [e.ids for e in encoded], steps=160)
    never_had = llama(scale=0.05)
    # Suppress by gradient ascent, a few steps.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(12):
        for e in encoded:
            ids = torch.tensor([e.ids])
            (-model(input_ids=ids, labels=ids).loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def probe(m: Any) -> float:
        return verbatim_probability(score_encoded(m, encoded[1:])[0])

    before, fresh = state(model), state(never_had)
    budget: dict[str, Any] = {"steps": 6, "every": 3, "batch_size": 1, "learning_rate": 2e-3}
    ids, mask = [encoded[0].ids], [encoded[0].mask]
    curve = relearn(model, ids, mask, probe, **budget)
    control = relearn(never_had, ids, mask, probe, **budget)
    assert [p.steps for p in curve] == [0, 3, 6]
    assert math.isnan(curve[0].loss)
    assert curve[-1].loss < 5
    assert curve[-1].value > 3 * control[-1].value
    assert same(before, state(model))
    assert same(fresh, state(never_had))
    assert curve == relearn(model, ids, mask, probe, **budget) or math.isnan(curve[0].loss)
    again = relearn(model, ids, mask, probe, **budget)
    assert [p.value for p in again] == [p.value for p in curve]


def test_relearning_trains_the_adapter_only() -> None:
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2))
    seen: list[bool] = []
    before = state(model)

    def probe(m: Any) -> float:
        now = m.state_dict()
        seen.append(all(torch.equal(v, before[k]) for k, v in now.items() if "lora_" not in k))
        return float(sum(v.abs().sum() for k, v in now.items() if "lora_B" in k))

    curve = relearn(model, [[1, 2, 3]], [[False, True, True]], probe, steps=2, every=1)
    assert [p.value > 0 for p in curve] == [False, True, True]
    assert all(seen)
    with pytest.raises(InputError, match="no tokens to learn"):
        relearn(model, [[1, 2]], [[False, False]], probe)
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter"):
        relearn(model, [[1, 2]], [[False, True]], probe)
