"""Several adapters over one base model in one forward pass: rows of a batch carry different ones.

The frozen layers below the first adapted one run once a prompt, whatever the number of adapters; from
there on the batch holds a row for each prompt and each of its adapters. Every linear map with an
adapter multiplies all rows by the one base weight and adds its low-rank product for all adapters at
once (two batched products over the stacked A and B).

Guarantees: a row's logits are those of its adapter alone in place, to float noise (tested on three
architectures); the model is as before when the context ends. Adapters of any one rank go together,
also another rank than the host's, as after a merge.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.lora import AdapterHost, AdapterState

Combine = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities (K, B, V) and weights (K, B) to the combined log-probabilities (B, V)."""


@dataclass(frozen=True)
class Stack:
    """Adapters side by side: for each adapted map A (S, r, in) and B (S, out, r), B scaled."""

    count: int
    weights: dict[str, tuple[Tensor, Tensor]]

    @property
    def bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(a.nbytes + b.nbytes for a, b in self.weights.values())


@dataclass(frozen=True)
class Mixture:
    """The adapters of B prompts: slots (K, B) in the stack, weights (K, B), and how they combine."""

    stacked: Stack
    slots: NDArray[np.int64]
    weights: NDArray[np.float64]
    combine: Combine


def stack(host: AdapterHost, adapters: Sequence[AdapterState]) -> Stack:
    """Put adapters side by side.

    Raises:
        InputError: none given, their ranks differ, or they are not for the layers of this host.
    """
    if not adapters:
        raise InputError("no adapter to stack.", "Use the base model alone.")
    if any(set(adapter) != set(host.names) for adapter in adapters):
        raise InputError(
            f"The adapters are not for the {len(host.layers) - host.first_layer} upper layers of "
            f"{host.base.reference}.",
            "Use the base model and the training.top_layers that they were trained with.",
        )
    scale = host.shape.alpha / host.shape.rank
    device = host.base.device
    found = {}
    for name in host.names:
        if ".lora_A." not in name:
            continue
        place = name.split(".lora_A.")[0]
        pair = [[a[n] for a in adapters] for n in (name, name.replace(".lora_A.", ".lora_B."))]
        if len({tuple(t.shape) for t in pair[0]}) != 1:
            raise InputError("the adapters differ in rank.", "Merge or stack those of one rank.")
        a, b = (torch.stack(tensors).to(device) for tensors in pair)
        found[place] = (a, b * scale)
    return Stack(len(adapters), found)


class _Rows:
    """Which adapter each row of the batch carries, as groups of one size for batched products."""

    def __init__(self, slots: Tensor, count: int) -> None:
        """Group rows by `slots` (R,); a short group is filled up with row 0, whose result is unused."""
        order = torch.argsort(slots, stable=True)
        sizes = torch.bincount(slots, minlength=count)
        self.largest = int(sizes.max())
        begins = torch.cumsum(sizes, 0) - sizes
        within = torch.arange(len(slots)) - begins[slots[order]]
        index = torch.zeros(count * self.largest, dtype=torch.long)
        place = slots[order] * self.largest + within
        index[place] = order
        self.back = torch.empty(len(slots), dtype=torch.long)
        self.back[order] = place  # (R,): where a row's result stands
        same = torch.arange(count * self.largest)
        self.index = None if len(slots) == len(index) and bool((index == same).all()) else index

    def product(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """B A x with each row's own A and B: (R, T, in) to (R, T, out), float32."""
        _rows, length, width = x.shape
        grouped = x if self.index is None else x[self.index]
        flat = grouped.reshape(len(a), self.largest * length, width)  # (S, n T, in)
        delta = torch.bmm(torch.bmm(flat, a.transpose(1, 2)), b.transpose(1, 2))
        delta = delta.view(len(a) * self.largest, length, b.shape[1])
        return delta if self.index is None else delta[self.back]


class Mixed:
    """The model with a stack of adapters in place; made by `mixing`.

    `arrange` says which adapters the rows of the next passes carry; `forward` runs one pass.
    """

    def __init__(self, host: AdapterHost, stacked: Stack) -> None:
        self._host = host
        self._stacked = stacked
        self._model = host.base.model
        names = _takes(type(self._model).forward)
        self._keeps = "logits_to_keep" in names
        self._positions = "position_ids" in names
        self.copies = 1
        self.prompts = 0
        self._rows: _Rows | None = None
        self._spread: dict[int, tuple[Tensor, Tensor]] = {}

    def arrange(self, slots: Tensor) -> None:
        """Set the adapter (K, B) of the k-th row of each of B prompts."""
        self.copies, self.prompts = slots.shape
        self._rows = _Rows(slots.reshape(-1), self._stacked.count)

    def forward(
        self, ids: Tensor, attention: Tensor, cache: Any = None, keep: Tensor | int = 0
    ) -> Tensor:
        """Logits (K B, kept, V), row k B + b for prompt b; `keep` as in transformers."""
        self._spread.clear()
        positions = (attention.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        extra: dict[str, Any] = {"position_ids": positions} if self._positions else {}
        if self._keeps:
            extra["logits_to_keep"] = keep
        out = self._model(
            input_ids=ids,
            attention_mask=attention,
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        )
        logits: Tensor = out.logits
        if not self._keeps:
            logits = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
        return logits

    def linear(self, module: Any, place: str) -> Callable[..., Tensor]:
        """What an adapted map computes while the context is open."""
        a, b = self._stacked.weights[place]

        def forward(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            assert self._rows is not None
            base: Tensor = module.base_layer(x)
            return (base + self._rows.product(x.float(), a, b)).to(base.dtype)

        return forward

    def widen(self, first: bool) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        """The hook before an adapted layer: everything that has a row a prompt gets K of them."""

        def hook(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if first:
                self._spread.clear()
            skip = () if first else ("hidden_states",)  # already wide above the first layer
            wide = {k: v if k in skip else self._widened(v) for k, v in kwargs.items()}
            begin = 0 if first or not args else 1
            return (*args[:begin], *(self._widened(v) for v in args[begin:])), wide

        return hook

    def _widened(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._widened(item) for item in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != self.prompts:
            return value
        if self.copies == 1:
            return value
        held = self._spread.get(id(value))
        if held is None or held[0] is not value:
            wide = value.repeat(self.copies, *[1] * (value.dim() - 1))
            held = self._spread[id(value)] = (value, wide)
        return held[1]


@functools.cache
def _takes(forward: Callable[..., Any]) -> frozenset[str]:
    """What a model's forward pass can be given; asked for every token of an answer."""
    return frozenset(inspect.signature(forward).parameters)


@contextmanager
def mixing(host: AdapterHost, stacked: Stack) -> Iterator[Mixed]:
    """Hold the model with a stack of adapters in place; one thread at a time."""
    with host.lock:
        mixed = Mixed(host, stacked)
        modules = {place: host.adapted[place] for place in stacked.weights}
        before = {place: vars(module).get("forward") for place, module in modules.items()}
        handles = [
            layer.register_forward_pre_hook(mixed.widen(number == 0), with_kwargs=True)
            for number, layer in enumerate(host.layers[host.first_layer :])
        ]
        try:
            for place, module in modules.items():
                vars(module)["forward"] = mixed.linear(module, place)  # hides the method
            yield mixed
        finally:
            for handle in handles:
                handle.remove()
            for place, module in modules.items():
                vars(module).pop("forward", None)
                if before[place] is not None:
                    vars(module)["forward"] = before[place]
