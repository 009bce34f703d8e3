"""The upper part of a Llama-like model written for one purpose: the gradient of its LoRA maps.

Rows of a batch lie one after another without padding, and a beginning that all its documents share (a
chat template's system turn) is computed once: causal attention makes its states the same in each.
Frozen weights get no gradient, every step is differentiated by hand (`derivatives`), and the last layer
and the vocabulary are computed only where something is predicted.

Guarantees: the same loss and gradients as transformers with PEFT up to rounding (tested); documents
attend to themselves alone; the bits depend on the batch's documents, in their order, and on nothing
else. `fits` says for which models; others train through their own forward. Not for generation.

Shapes: N rows, B documents, T the longest, H heads in KV groups of G, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from llm_unlearn.models import derivatives
from llm_unlearn.models.chat import Example
from llm_unlearn.models.derivatives import Packed
from llm_unlearn.models.lora import AdapterHost


def fits(host: AdapterHost) -> bool:
    """Whether this module computes what the model computes: Llama's and Qwen2's plain layers."""
    config = host.base.model.config
    head = host.base.model.get_output_embeddings()
    return (
        all(type(layer) in (LlamaDecoderLayer, Qwen2DecoderLayer) for layer in host.layers)
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and head is not None
        and getattr(head, "bias", None) is None
    )


class Lean:
    """Batches and losses of one host. Hold the host's lock while using it.

    Args:
        host: for which `fits` is true.
        first: the lowest layer that trains; those below are run once a batch, with the adapter in
            place. By default the first adapted one.
    """

    def __init__(self, host: AdapterHost, first: int | None = None) -> None:
        self._host = host
        self._first = host.first_layer if first is None else first
        self._model: Any = host.base.model.get_decoder()
        self._head: Tensor = host.base.model.get_output_embeddings().weight
        config = host.base.model.config
        self._groups = config.num_attention_heads // config.num_key_value_heads
        self._key_heads = config.num_key_value_heads

    @torch.no_grad()
    def collate(self, examples: Sequence[Example], below: Sequence[Tensor] | None = None) -> Packed:
        """Lay a batch out, and run the layers below the first that trains on it.

        `below` is what they gave for each document alone (T, width); then they are not run.
        """
        device = self._host.base.device
        shared = _shared_length(examples)
        width = max(len(e.ids) for e in examples)
        ids: list[int] = []
        positions: list[int] = []
        place: list[int] = []
        grid = torch.zeros((len(examples), width), dtype=torch.long)
        sources, targets = [], []
        for number, example in enumerate(examples):
            first = 0 if number == 0 else shared
            grid[number, :first] = torch.arange(first)
            grid[number, first : len(example.ids)] = torch.arange(
                len(ids), len(ids) + len(example.ids) - first
            )
            ids += example.ids[first:]
            positions += range(first, len(example.ids))
            place += range(number * width + first, number * width + len(example.ids))
            for position, predicted in enumerate(example.loss):
                if predicted:
                    sources.append(int(grid[number, position - 1]))
                    targets.append(example.ids[position])
        kept, parents = torch.unique(torch.tensor(sources), return_inverse=True)
        hidden = self._model.embed_tokens(torch.tensor(ids, device=device))
        cosine, sine = self._model.rotary_emb(
            hidden[None], position_ids=torch.tensor([positions], device=device)
        )
        packed = Packed(
            grid.to(device),
            torch.tensor(place, device=device),
            shared,
            hidden,
            cosine[0, :, None],  # (N, 1, D)
            sine[0, :, None],
            kept.to(device),
            parents.to(device),
            torch.tensor(targets, device=device),
            sum(len(e.ids) for e in examples),
        )
        if below is None:
            for layer in self._host.layers[: self._first]:
                hidden = self._layer(layer, hidden, packed, None)
        else:
            hidden = torch.cat([below[0], *(rows[shared:] for rows in below[1:])]).to(device)
        object.__setattr__(packed, "hidden", hidden)
        return packed

    def loss(self, batch: Packed) -> Tensor:
        """Mean cross-entropy over the predicted tokens."""
        loss: Tensor = derivatives.loss(self.states(batch), self._head, batch.targets)
        return loss

    def states(self, batch: Packed) -> Tensor:
        """What enters the vocabulary for each predicted token (n, width), in their order."""
        hidden = batch.hidden
        upper = self._host.layers[self._first :]
        for number, layer in enumerate(upper, 1):
            hidden = self._layer(layer, hidden, batch, batch.kept if number == len(upper) else None)
        norm = self._model.norm
        hidden = derivatives.norm(hidden, norm.weight, norm.variance_epsilon)
        predicting: Tensor = hidden.index_select(0, batch.parents)
        return predicting

    def _layer(self, layer: Any, x: Tensor, batch: Packed, kept: Tensor | None) -> Tensor:
        attention, mlp = layer.self_attn, layer.mlp
        norm = layer.input_layernorm
        entering = derivatives.norm(x, norm.weight, norm.variance_epsilon)
        q, k, v = _maps(entering, attention.q_proj, attention.k_proj, attention.v_proj)
        mixed = derivatives.attention(
            q, k, v, batch, self._key_heads, self._groups, float(attention.scaling)
        )
        if kept is not None:  # nothing above reads the other rows
            mixed, x = mixed.index_select(0, kept), x.index_select(0, kept)
        x = x + _maps(mixed, attention.o_proj)[0]
        norm = layer.post_attention_layernorm
        entering = derivatives.norm(x, norm.weight, norm.variance_epsilon)
        gate, up = _maps(entering, mlp.gate_proj, mlp.up_proj)
        added: Tensor = x + _maps(derivatives.gate(gate, up), mlp.down_proj)[0]
        return added


def _shared_length(examples: Sequence[Example]) -> int:
    """How many first tokens all documents of a batch have in common, none of them predicted."""
    if len(examples) == 1:
        return 0
    length = 0
    for column, loss in zip(
        zip(*(e.ids for e in examples), strict=False),
        zip(*(e.loss for e in examples), strict=False),
        strict=True,
    ):
        if len(set(column)) > 1 or any(loss):
            break
        length += 1
    return length


def _maps(x: Tensor, *maps: Any) -> tuple[Tensor, ...]:
    """Linear maps of one input, with their LoRA parts where they have any."""
    if not hasattr(maps[0], "lora_A"):
        return tuple(nn.functional.linear(x, m.weight, m.bias) for m in maps)
    given: list[Any] = []
    for module in maps:
        base, a, b = module.base_layer, module.lora_A["default"], module.lora_B["default"]
        given += [base.weight, base.bias, a.weight, b.weight]
    out: tuple[Tensor, ...] = derivatives.lora(x, float(maps[0].scaling["default"]), *given)
    return out
