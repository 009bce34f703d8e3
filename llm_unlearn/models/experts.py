"""Several adapters over one base model in one forward pass: rows of a batch carry different ones.

The frozen layers below the first adapted one run once a prompt, whatever the number of adapters; from
there on the batch holds a row for each prompt and each of its adapters. Every linear map with an
adapter multiplies all rows by the one base weight and adds its low-rank product for all adapters at
once (two batched products over the stacked A and B).

Guarantees: a row's logits are those of its adapter alone in place, to float noise (tested on three
architectures); the model is as before when the context ends. Adapters of any one rank go together,
also another rank than the host's, as after a merge. Greedy decoding only.
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
from transformers import DynamicCache

from llm_unlearn.errors import InputError
from llm_unlearn.models.lora import AdapterHost, AdapterState

Combine = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities (K, B, V) and weights (K, B) to the combined log-probabilities (B, V)."""

_ROWS = 64  # rows of one batch: bounds memory, and wider ones are no faster on a CPU
_LOGITS = 1 << 27  # most float32 logits held at once while scoring


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


@torch.inference_mode()
def generate_mixed(
    host: AdapterHost,
    stacked: Stack,
    prompts: Sequence[Sequence[int]],
    slots: NDArray[np.int64],
    weights: NDArray[np.float64],
    combine: Combine,
    *,
    max_new_tokens: int = 64,
    rows: int = _ROWS,
) -> list[list[int]]:
    """Greedy continuations of each prompt by several adapters together, token by token.

    Args:
        slots: (K, prompts), positions in the stack.
        weights: (K, prompts), at least 0, columns of sum 1; with 0 an adapter has no say.
        combine: how K next-token distributions become one; not called when K is 1.
        rows: most rows (prompts times K) of a batch.

    Returns:
        New token ids without the stop token, one list a prompt.

    Raises:
        InputError: a prompt is longer than the model can read.
    """
    _check_length(host, prompts, max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = max(1, rows // max(1, len(slots)))
    with mixing(host, stacked) as mixed:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            _decode(
                host,
                mixed,
                [prompts[i] for i in chosen],
                torch.from_numpy(slots[:, chosen]),
                torch.from_numpy(weights[:, chosen]).float(),
                combine,
                max_new_tokens,
                [answers[i] for i in chosen],
            )
    return answers


def _decode(
    host: AdapterHost,
    mixed: Mixed,
    prompts: Sequence[Sequence[int]],
    slots: Tensor,
    weights: Tensor,
    combine: Combine,
    most: int,
    answers: list[list[int]],
) -> None:
    """Fill `answers`; prompts that have stopped leave the batch when they are half of it."""
    device, stops = host.base.device, set(host.base.stop_ids)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), host.base.tokenizer.pad_token_id, dtype=torch.long)
    attention = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        attention[row, width - len(prompt) :] = 1
    ids, attention, weights = ids.to(device), attention.to(device), weights.to(device)
    cache = DynamicCache(config=host.base.model.config)
    mixed.arrange(slots)
    places = list(range(len(prompts)))  # which answer a prompt of the batch belongs to
    running = [True] * len(prompts)
    for _ in range(most):
        logits = mixed.forward(ids, attention, cache, keep=1)[:, -1]  # (K B, V)
        following = _next(logits, weights, combine)
        for row, token in enumerate(following.tolist()):
            if running[row] and token not in stops:
                answers[places[row]].append(token)
            else:
                running[row] = False
        if not any(running):
            return
        ids = following[:, None]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
        if 2 * sum(running) <= len(running):
            kept = torch.tensor([row for row, on in enumerate(running) if on])
            _shrink(cache, kept.to(device), len(running), mixed.copies)
            ids, attention = ids[kept.to(device)], attention[kept.to(device)]
            slots, weights = slots[:, kept], weights[:, kept.to(device)]
            places = [places[row] for row in kept.tolist()]
            running = [True] * len(places)
            mixed.arrange(slots)


def _next(logits: Tensor, weights: Tensor, combine: Combine) -> Tensor:
    """The likeliest token (B,) of the combined distribution; ties go to the lower id."""
    copies, prompts = weights.shape
    if copies == 1:
        return logits.argmax(-1)
    each = torch.log_softmax(logits.float(), -1).view(copies, prompts, -1)
    return combine(each, weights).argmax(-1)


def _shrink(cache: Any, kept: Tensor, prompts: int, copies: int) -> None:
    """Keep some prompts' rows in every layer: B of them below the adapted layers, K B above."""
    wide = (kept + prompts * torch.arange(copies, device=kept.device)[:, None]).reshape(-1)
    for layer in cache.layers:
        index = kept if len(layer.keys) == prompts else wide
        layer.keys, layer.values = layer.keys[index], layer.values[index]


@torch.inference_mode()
def score_mixed(
    host: AdapterHost,
    stacked: Stack,
    texts: Sequence[tuple[Sequence[int], Sequence[bool]]],
    slots: NDArray[np.int64],
    weights: NDArray[np.float64],
    combines: Sequence[Combine],
    *,
    rows: int = _ROWS,
) -> list[list[NDArray[np.float64]]]:
    """Log-probabilities of each text's masked tokens under the combined next-token distributions.

    Args:
        texts: token ids and which of them are targets (never the first).
        combines: several ways to combine share one forward pass.

    Returns:
        For each of `combines` and each text, (targets,) natural logarithms.
    """
    _check_length(host, [ids for ids, _ in texts], 0)
    found: list[list[NDArray[np.float64]]] = [[np.empty(0)] * len(texts) for _ in combines]
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i][0]), i))
    vocabulary = int(host.base.model.get_output_embeddings().weight.shape[0])
    copies = max(1, len(slots))
    longest = max((len(ids) for ids, _ in texts), default=1)
    size = max(1, min(rows, _LOGITS // (vocabulary * longest)) // copies)
    device = host.base.device
    with mixing(host, stacked) as mixed:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            width = max(len(texts[i][0]) for i in chosen)
            ids = torch.zeros((len(chosen), width), dtype=torch.long)
            attention = torch.zeros((len(chosen), width), dtype=torch.long)
            for row, i in enumerate(chosen):
                ids[row, : len(texts[i][0])] = torch.tensor(list(texts[i][0]))
                attention[row, : len(texts[i][0])] = 1
            targets = [np.flatnonzero(np.asarray(texts[i][1], dtype=bool)) for i in chosen]
            wanted = np.unique(np.concatenate(targets) - 1)
            mixed.arrange(torch.from_numpy(slots[:, chosen]))
            logits = mixed.forward(
                ids.to(device), attention.to(device), keep=torch.from_numpy(wanted).to(device)
            ).view(copies, len(chosen), len(wanted), -1)
            share = torch.from_numpy(weights[:, chosen]).float().to(device)
            for row, i in enumerate(chosen):
                where = torch.from_numpy(np.searchsorted(wanted, targets[row] - 1))
                each = torch.log_softmax(logits[:, row, where].float(), -1)  # (K, targets, V)
                own = ids[row, torch.from_numpy(targets[row])].to(device)[:, None]
                spread = share[:, row, None].expand(copies, len(own))
                for number, combine in enumerate(combines):
                    mixture = each[0] if copies == 1 else combine(each, spread)
                    found[number][i] = mixture.gather(1, own)[:, 0].double().cpu().numpy()
            del logits
    return found


def _check_length(host: AdapterHost, prompts: Sequence[Sequence[int]], new: int) -> None:
    longest = max((len(prompt) for prompt in prompts), default=0)
    most = getattr(host.base.model.config, "max_position_embeddings", None)
    if most is not None and longest + new > most:
        raise InputError(
            f"The prompt has {longest} tokens; with {new} for the answer that is more "
            f"than the {most} that {host.base.reference} can read.",
            "Ask a shorter question, or retrieve fewer passages.",
        )
