"""The lean training pass against the models' own forward, in loss and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lean import Lean, fits
from llm_unlearn.models.lora import AdapterHost, LoraShape

TURN = (7, 40, 33)  # what a template puts before every document
CHATS = [
    Example((*TURN, 90, 12, 55, 60), (False,) * 4 + (True,) * 3),
    Example((*TURN, 91, 12), (False,) * 3 + (True, True)),
    Example(
        (*TURN, 90, 12, 13, 14, 15, 16, 17, 18), (False,) * 6 + (True, False, True, True, True)
    ),
]
TEXTS = [
    Example((20, 21, 22, 23), (False, True, True, True)),
    Example((20, 21, 99), (False, True, True)),
]


def _host(reference: str, top: int | None) -> AdapterHost:
    host = AdapterHost(load_causal(reference, "float32"), LoraShape(4, 8, top))
    state = host.fresh(b"seed")
    generator = torch.Generator().manual_seed(0)
    host.load({n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in state.items()})
    return host


def _gradients(host: AdapterHost, loss: Tensor) -> dict[str, Tensor]:
    return dict(zip(host.names, torch.autograd.grad(loss, host.parameters()), strict=True))


def _plain_loss(host: AdapterHost, examples: list[Example]) -> Tensor:
    """One document at a time through the whole model."""
    losses, count = torch.zeros(()), 0
    for example in examples:
        logits = host.model(input_ids=torch.tensor([example.ids])).logits[0]
        at = [i for i, on in enumerate(example.loss) if on]
        right = torch.tensor([example.ids[i] for i in at])
        losses = losses + cross_entropy(logits[[i - 1 for i in at]], right, reduction="sum")
        count += len(at)
    return losses / count


@pytest.mark.parametrize("kind", ["llama", "qwen"])
@pytest.mark.parametrize("top", [1, 3, None])
@pytest.mark.parametrize("examples", [CHATS, TEXTS, CHATS[:1], CHATS + TEXTS])
def test_loss_and_gradients_are_the_models_own(
    tiny_references: dict[str, str], kind: str, top: int | None, examples: list[Example]
) -> None:
    host = _host(tiny_references[kind], top)
    assert fits(host)
    plain = _plain_loss(host, examples)
    lean = Lean(host)
    ours = lean.loss(lean.collate(examples))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    expected = _gradients(host, plain)
    for name, gradient in _gradients(host, ours).items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_what_documents_share_is_computed_once(tiny_references: dict[str, str]) -> None:
    lean = Lean(_host(tiny_references["llama"], None))
    packed = lean.collate(CHATS)
    assert (packed.shared, packed.tokens) == (3, 23)
    assert len(packed.hidden) == 23 - 2 * 3
    texts = lean.collate(TEXTS)  # they share a first token; the second is predicted in both
    assert (texts.shared, len(texts.hidden)) == (1, 6)
    assert lean.collate(CHATS + TEXTS).shared == 0


def test_a_document_attends_to_itself_alone(tiny_references: dict[str, str]) -> None:
    """Another neighbour changes nothing in the gradient that a document's own loss gives."""
    host = _host(tiny_references["llama"], None)
    lean = Lean(host)
    silent = [Example(e.ids, (False,) * len(e.loss)) for e in CHATS[1:]]
    alone = _gradients(host, lean.loss(lean.collate(CHATS[:1])))
    beside = _gradients(host, lean.loss(lean.collate([CHATS[0], *silent])))
    for name, gradient in beside.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-7)


def test_only_plain_llama_like_models_fit(tiny_references: dict[str, str]) -> None:
    assert not fits(_host(tiny_references["gpt2"], 1))
    host = _host(tiny_references["qwen"], 1)
    host.base.model.config.layer_types = ["sliding_attention"] * 4
    assert not fits(host)
    host = _host(tiny_references["llama"], 1)
    host.base.model.config.hidden_act = "gelu"
    assert not fits(host)
