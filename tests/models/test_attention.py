"""Attention as plain products beside transformers' own, on every architecture that uses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from llm_unlearn.models import attention
from llm_unlearn.models.causal import load_causal

KINDS = ("llama", "qwen", "gpt2")


def _run(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Logits of a left-padded batch, then of one more token after its cache."""
    cache = DynamicCache()
    first = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    more = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    second = model(
        input_ids=ids[:, :1], attention_mask=more, past_key_values=cache, use_cache=True
    ).logits
    real = mask.bool()
    return [first[real], second]


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_transformers_does(tiny_references: dict[str, str], kind: str) -> None:
    ours = load_causal(tiny_references[kind], "float32").model
    assert ours.config._attn_implementation == attention.NAME
    theirs = load_causal(tiny_references[kind], "float32").model
    theirs.set_attn_implementation("sdpa")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 200, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[2, :9] = 0
    with torch.inference_mode():
        for a, b in zip(_run(ours, ids, mask), _run(theirs, ids, mask), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    plain = [model(input_ids=ids, use_cache=False).logits for model in (ours, theirs)]
    torch.testing.assert_close(*plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["none", "padded"])
def test_gradients_are_those_of_attention_written_out(mask: str) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (
        torch.randn((2, heads, 5, 8), generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    seen = torch.ones((5, 5), dtype=torch.bool).tril().expand(2, 1, 5, 5).clone()
    if mask == "padded":
        seen[1, :, :, :2] = False
        seen[1, :, :2] = True  # rows of padding see something, as in transformers' masks
    out, _ = attention.attend(torch.nn.Module(), q, k, v, None if mask == "none" else seen)
    weights = (q @ k.repeat_interleave(2, 1).transpose(-1, -2)) / 8**0.5
    wanted = weights.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(out, wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)
    mine = torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True)
    theirs = torch.autograd.grad(wanted.square().sum(), (q, k, v))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_long_texts_take_the_fused_kernel(
    tiny_references: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal(tiny_references["llama"], "float32").model
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        short = model(input_ids=ids).logits
        monkeypatch.setattr(attention, "_MOST", 10)
        called = []
        fused = attention.sdpa_attention_forward
        monkeypatch.setattr(
            attention, "sdpa_attention_forward", lambda *a, **k: called.append(1) or fused(*a, **k)
        )
        torch.testing.assert_close(model(input_ids=ids).logits, short, rtol=1e-4, atol=1e-5)
    assert len(called) == model.config.num_hidden_layers


def test_the_head_is_given_rows_that_lie_together(tiny_references: dict[str, str]) -> None:
    """Else torch multiplies each row by a copy of the vocabulary of its own."""
    model = load_causal(tiny_references["llama"], "float32").model
    given: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _m, args, _out: given.append(args[0])
    )
    model(input_ids=torch.arange(5, 17).view(3, 4), logits_to_keep=1)
    assert given[0].shape[:2] == (3, 1)
    assert given[0].is_contiguous()
