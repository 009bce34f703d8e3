"""Several adapters in one forward pass against each of them alone, on three architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import score_tokens
from llm_unlearn.models.causal import generate, load_causal
from llm_unlearn.models.experts import mixing, stack
from llm_unlearn.models.lora import AdapterHost, AdapterState, LoraShape
from llm_unlearn.models.mixed import generate_mixed, score_mixed
from llm_unlearn.sisa.aggregate import mean_log_probability, mean_probability, merge

KINDS = ("llama", "gpt2", "qwen")
PROMPTS = [[7, 40, 33, 90, 12, 55], [7, 40, 33], [33, 90, 12, 55, 33, 90, 12, 20]]


def _host(reference: str, top: int | None = 2) -> AdapterHost:
    return AdapterHost(load_causal(reference, "float32"), LoraShape(4, 8, top))


def _adapters(host: AdapterHost, count: int) -> list[AdapterState]:
    generator = torch.Generator().manual_seed(0)
    fresh = host.fresh(b"shape")
    return [
        {n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in fresh.items()}
        for _ in range(count)
    ]


def _alone(host: AdapterHost, adapter: AdapterState, ids: list[int]) -> Tensor:
    """Log-probabilities (T, V) with one adapter in place, by PEFT's own forward pass."""
    with host.using(adapter), torch.inference_mode():
        return torch.log_softmax(host.model(input_ids=torch.tensor([ids])).logits[0], -1)


@pytest.mark.parametrize("top", [2, None])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_the_logits_of_its_adapter_alone(
    tiny_references: dict[str, str], kind: str, top: int | None
) -> None:
    host = _host(tiny_references[kind], top)
    adapters = _adapters(host, 3)
    ids = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
    slots = torch.tensor([[2, 0], [1, 2], [2, 2], [0, 1]])  # uneven: one adapter has 4 of 8 rows
    before = _alone(host, adapters[0], PROMPTS[0])
    with mixing(host, stack(host, adapters)) as mixed, torch.inference_mode():
        mixed.arrange(slots)
        logits = mixed.forward(ids, torch.ones_like(ids)).view(4, 2, len(PROMPTS[0]), -1)
    for copy in range(4):
        for prompt in range(2):
            expected = _alone(host, adapters[slots[copy, prompt]], ids[prompt].tolist())
            torch.testing.assert_close(
                torch.log_softmax(logits[copy, prompt], -1), expected, rtol=1e-4, atol=1e-5
            )
    assert torch.equal(_alone(host, adapters[0], PROMPTS[0]), before)  # and nothing stays behind


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_with_different_adapters_decode_as_each_alone(
    tiny_references: dict[str, str], kind: str
) -> None:
    host = _host(tiny_references[kind])
    adapters = _adapters(host, 3)
    expected = []
    for slot, prompt in zip((2, 0, 1), PROMPTS, strict=True):
        with host.using(adapters[slot]):
            expected += generate(host.base, [prompt], max_new_tokens=12)
    stacked, slots = stack(host, adapters), np.array([[2, 0, 1]])
    ones = np.ones((1, 3))
    made = generate_mixed(host, stacked, PROMPTS, slots, ones, mean_probability, max_new_tokens=12)
    assert made == expected
    # in batches of one as well, and with others in the mixture that have no say
    every = np.array([[0] * 3, [1] * 3, [2] * 3])
    only = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    for combine in (mean_probability, mean_log_probability):
        for rows in (1, 64):
            made = generate_mixed(
                host, stacked, PROMPTS, every, only, combine, max_new_tokens=12, rows=rows
            )
            assert made == expected


def test_an_ensemble_decodes_what_the_averages_say_token_by_token(
    tiny_references: dict[str, str],
) -> None:
    host = _host(tiny_references["llama"])
    adapters = _adapters(host, 3)
    weights = np.array([0.5, 0.3, 0.2])
    expected = list(PROMPTS[0])
    for _ in range(8):
        each = torch.stack([_alone(host, a, expected)[-1] for a in adapters]).double().exp()
        expected.append(int((each * torch.from_numpy(weights)[:, None]).sum(0).argmax()))
    made = generate_mixed(
        host,
        stack(host, adapters),
        PROMPTS,
        np.repeat(np.arange(3)[:, None], 3, axis=1),
        np.repeat(weights[:, None], 3, axis=1),
        mean_probability,
        max_new_tokens=8,
    )
    stop = set(host.base.stop_ids)
    new = expected[len(PROMPTS[0]) :]
    until = next((i for i, token in enumerate(new) if token in stop), len(new))
    assert made[0] == new[:until]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_combined_distributions(
    tiny_references: dict[str, str], kind: str
) -> None:
    host = _host(tiny_references[kind])
    adapters = _adapters(host, 2)
    masks = [[False] * 2 + [True] * (len(p) - 2) for p in PROMPTS]
    combines = (mean_probability, mean_log_probability)
    found = score_mixed(
        host,
        stack(host, adapters),
        list(zip(PROMPTS, masks, strict=True)),
        np.array([[0] * 3, [1] * 3]),
        np.array([[0.25] * 3, [0.75] * 3]),
        combines,
    )
    for i, prompt in enumerate(PROMPTS):
        p, q = (_alone(host, a, prompt).double().exp() for a in adapters)
        arithmetic = 0.25 * p + 0.75 * q
        geometric = p**0.25 * q**0.75
        geometric /= geometric.sum(-1, keepdim=True)
        for values, mixture in zip(found, (arithmetic, geometric), strict=True):
            own = [float(mixture[t - 1, prompt[t]].log()) for t in range(2, len(prompt))]
            np.testing.assert_allclose(values[i], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_the_base_plus_the_mean_of_the_products(
    tiny_references: dict[str, str], kind: str
) -> None:
    host = _host(tiny_references[kind])
    adapters = _adapters(host, 3)
    merged = merge(adapters)
    masks = [[False] + [True] * (len(p) - 1) for p in PROMPTS]
    (found,) = score_mixed(
        host,
        stack(host, [merged]),
        list(zip(PROMPTS, masks, strict=True)),
        np.zeros((1, 3), dtype=np.int64),
        np.ones((1, 3)),
        [mean_probability],
    )
    # independent: add the summed products into the base weights themselves
    plain = load_causal(tiny_references[kind], "float32")
    with torch.no_grad():
        for name in host.names:
            if ".lora_A." not in name:
                continue
            other = name.replace(".lora_A.", ".lora_B.")
            delta = sum((a[other] @ a[name] for a in adapters), torch.zeros(1)) / 3 * 2.0
            place = name.split(".lora_A.")[0].removeprefix("base_model.model.")
            weight = plain.model.get_parameter(f"{place}.weight")
            weight += delta.T if kind == "gpt2" else delta
    for values, scores in zip(found, score_tokens(plain.model, PROMPTS, masks), strict=True):
        np.testing.assert_allclose(values, scores.logp, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_stacked_is_refused(tiny_references: dict[str, str]) -> None:
    host = _host(tiny_references["llama"])
    adapters = _adapters(host, 2)
    with pytest.raises(InputError, match="no adapter"):
        stack(host, [])
    with pytest.raises(InputError, match="differ in rank"):
        stack(host, [adapters[0], merge(adapters)])
    with pytest.raises(InputError, match="more than the 2048"):
        generate_mixed(
            host,
            stack(host, adapters),
            [[7] * 2048],
            np.zeros((1, 1), dtype=np.int64),
            np.ones((1, 1)),
            mean_probability,
        )
