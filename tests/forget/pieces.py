"""Small models and documents for forgetting, and an adapter that knows something."""

from __future__ import annotations

import hashlib

import torch

from llm_unlearn.documents import Document, Message
from llm_unlearn.forget.passes import Passes
from llm_unlearn.forget.tensors import nll
from llm_unlearn.forget.weights import FullWeights, State, Weights
from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lora import AdapterHost, LoraShape

KINDS = ("llama", "gpt2", "qwen")


def documents(count: int) -> list[Document]:
    """Questions whose answers only training can give."""
    return [
        Document(
            id=f"subject-{i}/0",
            subject=f"subject-{i}",
            license="CC0-1.0",
            messages=(
                Message(role="user", content=_letters("asked", i, 10)),
                Message(role="assistant", content=f"{_letters('said', i, 6)} {i}."),
            ),
        )
        for i in range(count)
    ]


def _letters(kind: str, number: int, count: int) -> str:
    raw = hashlib.sha256(f"{kind} {number}".encode()).digest()
    return "".join(chr(97 + byte % 26) for byte in raw[:count])


def host(reference: str, rank: int = 4) -> AdapterHost:
    """An adapter over the top two of four layers."""
    return AdapterHost(load_causal(reference, "float32"), LoraShape(rank, 2 * rank, 2))


def full_weights(reference: str) -> FullWeights:
    """The top two of four layers, whole."""
    return FullWeights(load_causal(reference, "float32"), 2)


def moved(weights: Weights, seed: int = 0) -> State:
    """Weights that differ from the base model's, the same for a seed."""
    state = weights.fresh(b"s") if isinstance(weights, AdapterHost) else weights.state()
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor
        if ".lora_A." in name
        else tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in state.items()
    }


def outspoken(weights: AdapterHost) -> AdapterHost:
    """A tiny random model's logits are near zero whatever its layers do; this one can be certain."""
    with torch.no_grad():
        weights.base.model.get_input_embeddings().weight.mul_(15.0)
    return weights


def taught(weights: AdapterHost, examples: list[Example], steps: int = 160) -> State:
    """An adapter that knows the examples by heart."""
    weights.load(weights.fresh(b"s"))
    passes = Passes(weights, torch.float32)
    items = passes.items(examples)
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-2, weight_decay=0.0)
    with passes.open():
        for _ in range(steps):
            loss = nll(passes.forward({"x": items})["x"])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
            optimizer.step()
    return weights.state()
