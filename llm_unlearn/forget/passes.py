"""Forward passes for forgetting: only what can change, only where something is predicted.

Llama-like models with an adapter run through `models.lean`; others, and passes that stop at a layer or are
differentiated twice, through their own forward.

Guarantees: the frozen layers below the first trained one run once a text; the LM head runs on the
tokens that carry loss and on no others; all groups of a step share one pass. What the weights said at the
start is taken once and kept as hidden states (H numbers a token, not the V of a distribution), so no
second model is in memory. A model that does more after its head than the head gets whole
logits kept instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llm_unlearn.forget.method import Asks
from llm_unlearn.forget.tensors import Predicted, Reference, sequence_means
from llm_unlearn.forget.weights import Weights
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lean import Lean, fits
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.models.prefix import lower_states, upper_part


@dataclass(frozen=True)
class Kept:
    """What the weights said of one text at the start: (n,), (n, H) before the head, (n, V), (n, H)."""

    logps: Tensor | None = None
    states: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Item:
    """One text: token ids, the positions that predict, what they predict, the states entering above."""

    example: Example
    places: Tensor  # (n,)
    targets: Tensor  # (n,)
    states: Tensor | None  # (T, H)
    kept: Kept = Kept()

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids (T,)."""
        return self.example.ids


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Passes:
    """Forward passes over one set of weights.

    Args:
        dtype: what matrix products compute in; float32 means no autocast.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self.weights = weights
        self._dtype = dtype
        self._head = weights.base.model.get_output_embeddings()
        self._entering: list[Tensor] | None = None
        self._head_is_last: bool | None = None
        self._lean: Lean | None = None
        self.tokens = 0  # passed over with a gradient to be taken
        if isinstance(weights, AdapterHost) and weights.base.model.dtype == dtype and fits(weights):
            self._lean = Lean(weights)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the weights; forward passes work inside only."""
        weights = self.weights
        with weights.lock, upper_part(weights.layers, weights.first_layer) as entering:
            self._entering = entering
            try:
                yield
            finally:
                self._entering = None

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Use the model's own forward, which can be differentiated twice."""
        held, self._lean = self._lean, None
        try:
            yield
        finally:
            self._lean = held

    def items(self, examples: Sequence[Example]) -> list[Item]:
        """Texts ready for many passes. Call it outside of `open`."""
        weights = self.weights
        made = []
        with weights.lock:
            for example in examples:
                ids = torch.tensor(example.ids)
                targets = torch.tensor(example.loss).nonzero()[:, 0]
                states = None
                if weights.first_layer > 0:
                    with self._cast():
                        states = (
                            self._lean.collate([example]).hidden
                            if self._lean is not None
                            else lower_states(
                                weights.model, weights.layers, weights.first_layer, example.ids
                            )
                        )
                made.append(Item(example, targets - 1, ids[targets], states))
        return made

    def forward(
        self, groups: Mapping[str, Sequence[Item]], layer: int | None = None
    ) -> dict[str, Predicted]:
        """One pass over all texts of all groups.

        Args:
            layer: stop at this layer and give its hidden states instead of logits.
        """
        every = [item for items in groups.values() for item in items]
        if torch.is_grad_enabled():
            self.tokens += sum(len(item.ids) for item in every)
        out, hidden = self._run(every, layer)
        found: dict[str, Predicted] = {}
        start = 0
        for name, items in groups.items():
            if not items:
                continue
            counts = torch.tensor([len(item.targets) for item in items])
            end = start + int(counts.sum())
            found[name] = Predicted(
                targets=torch.cat([item.targets for item in items]).to(out.device),
                rows=torch.arange(len(items)).repeat_interleave(counts).to(out.device),
                sequences=len(items),
                logits=None if hidden else out[start:end],
                hidden=out[start:end] if hidden else None,
                reference=self._reference(items),
            )
            start = end
        return found

    @torch.no_grad()
    def remember(
        self, items: Sequence[Item], asks: Collection[Asks], layer: int | None = None
    ) -> list[Item]:
        """The same texts with what the weights in place say of them now."""
        made = []
        for item in items:
            kept = item.kept
            if "hidden" in asks:
                out, _ = self._run([item], layer)
                kept = replace(kept, hidden=out)
            if "logits" in asks or "logps" in asks:
                captured: list[Tensor] = []
                out, _ = self._run([item], None, captured)
                logps = -torch.nn.functional.cross_entropy(
                    out, item.targets.to(out.device), reduction="none"
                )
                kept = replace(kept, logps=logps)
                if "logits" in asks:
                    if self._head_is_last is None:
                        self._head_is_last = torch.equal(self._through_head(captured[0]), out)
                    kept = (
                        replace(kept, states=captured[0])
                        if self._head_is_last
                        else replace(kept, logits=out)
                    )
            made.append(replace(item, kept=kept))
        return made

    @torch.no_grad()
    def probabilities(self, items: Sequence[Item], batch: int = 16) -> list[float]:
        """Geometric mean probability of the predicted tokens of each text (TOFU's measure)."""
        order = sorted(range(len(items)), key=lambda i: (len(items[i].ids), i))
        found = [0.0] * len(items)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            predicted = self.forward({"x": [replace(items[i], kept=Kept()) for i in chosen]})["x"]
            means = sequence_means(predicted.logps, predicted.rows, predicted.sequences)
            for i, value in zip(chosen, means.exp().tolist(), strict=True):
                found[i] = value
        return found

    def _run(
        self, items: Sequence[Item], layer: int | None, captured: list[Tensor] | None = None
    ) -> tuple[Tensor, bool]:
        if self._entering is None:
            raise AssertionError("forward passes need an open `Passes`")
        if self._lean is not None and layer is None:
            states = self._lean_states(self._lean, items)
            if captured is not None:
                captured.append(states.detach())
            return nn.functional.linear(states, self._head.weight).float(), False
        weights = self.weights
        width = max(len(item.ids) for item in items)
        device = weights.base.device
        ids = torch.zeros((len(items), width), dtype=torch.long)
        for row, item in enumerate(items):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
        flat = torch.cat([item.places + row * width for row, item in enumerate(items)]).to(device)
        if weights.first_layer > 0:
            first = _given(items[0].states)
            states = torch.zeros((len(items), width, first.shape[-1]), dtype=first.dtype)
            for row, item in enumerate(items):
                states[row, : len(item.ids)] = _given(item.states)
            self._entering[:] = [states.to(device)]

        def at_head(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            gathered = args[0].flatten(0, 1).index_select(0, flat)
            if captured is not None:
                captured.append(gathered.detach())
            return (gathered[None], *args[1:])

        def at_layer(_module: Any, _args: Any, output: Any) -> None:
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        handle = (
            self._head.register_forward_pre_hook(at_head)
            if layer is None
            else weights.layers[layer].register_forward_hook(at_layer)
        )
        try:
            with self._cast():
                # right padding under a causal mask: the real tokens need no attention mask
                out = weights.model(input_ids=ids.to(device), use_cache=False).logits[0].float()
            return out, False
        except _Reached as reached:
            return reached.hidden.flatten(0, 1).index_select(0, flat).float(), True
        finally:
            handle.remove()

    @staticmethod
    def _lean_states(lean: Lean, items: Sequence[Item]) -> Tensor:
        entering = None if items[0].states is None else [_given(item.states) for item in items]
        return lean.states(lean.collate([item.example for item in items], entering))

    @torch.no_grad()
    def _reference(self, items: Sequence[Item]) -> Reference:
        kept = [item.kept for item in items]
        logits = None
        if kept[0].states is not None:
            logits = self._through_head(torch.cat([_given(k.states) for k in kept]))
        elif kept[0].logits is not None:
            logits = torch.cat([_given(k.logits) for k in kept])
        return Reference(
            logps=None if kept[0].logps is None else torch.cat([_given(k.logps) for k in kept]),
            logits=logits,
            hidden=None if kept[0].hidden is None else torch.cat([_given(k.hidden) for k in kept]),
        )

    def _through_head(self, states: Tensor) -> Tensor:
        if self._lean is not None:
            return nn.functional.linear(states, self._head.weight).float()
        with self._cast():
            found: Tensor = self._head(states[None])[0]
        return found.float()

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.weights.base.device.type, dtype=self._dtype)


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise AssertionError("a text without what this pass needs")
    return tensor
