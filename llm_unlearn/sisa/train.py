"""Train one stage of one shard: from a checkpoint and the slices so far to the next checkpoint.

Guarantees: the result is a pure function of (base model, settings, start, slices, seed): batches are
cut inside a slice, their order comes from (seed, epoch), the learning rate restarts with each stage and
depends on that stage's own number of steps. No dropout. Float32 master weights; matrix products in the
base model's dtype. Assumes the thread count pinned by the recipe is set. Llama-like models run through
`models.lean`; any other through its own forward, in which right padding changes no real token.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm_unlearn.models import lean
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lora import AdapterHost, AdapterState, Block
from llm_unlearn.models.prefix import lower_states, upper_part


@dataclass(frozen=True)
class StageSettings:
    """How one stage trains: passes over its slices, batch size, AdamW and its schedule."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float


@dataclass(frozen=True)
class TrainState:
    """Everything that the next stage needs: the adapter and AdamW's moments and step.

    `moments` maps `exp_avg.NAME` and `exp_avg_sq.NAME` to float32 tensors shaped like the adapter's
    (empty before the first step). Random numbers need no state: each stage is seeded anew.
    `trained` names the tensors of the block that the last stage trained; None where it trained all.
    """

    adapter: AdapterState
    moments: Mapping[str, Tensor]
    step: int
    trained: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Batch:
    """Token ids (B, T) right-padded, targets (B, T) with -100 where nothing is predicted, states."""

    ids: Tensor
    targets: Tensor
    hidden: Tensor | None
    tokens: int


Prepared = dict[tuple[Example, ...], Any]


def cut_batches(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Indices of one slice's examples in batches: by length, then by the given (keyed) order."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def train_stage(
    host: AdapterHost,
    start: TrainState,
    slices: Sequence[Sequence[Example]],
    settings: StageSettings,
    seed: bytes,
    on_step: Callable[[float, int], None] | None = None,
    prepared: Prepared | None = None,
    block: Block | None = None,
) -> TrainState:
    """Train over all the given slices, or whatever groups of documents must share no batch.

    Args:
        slices: examples in their keyed order, one sequence a slice.
        seed: decides the order of batches, nothing else.
        on_step: called after each optimizer step with its loss and number of real tokens.
        prepared: batches kept from one stage of a shard to the next; they depend on their own
            documents alone, so keeping them changes no bit. None with a block, whose batches depend
            on the layers below it.
        block: trains only this part of the adapter, with moments of its own that end with the stage.

    Returns:
        A new state; `start` is not changed, and is the result when there is nothing to predict.
    """
    with host.lock:
        return _train_stage(host, start, slices, settings, seed, on_step, prepared, block)


def _train_stage(
    host: AdapterHost,
    start: TrainState,
    slices: Sequence[Sequence[Example]],
    settings: StageSettings,
    seed: bytes,
    on_step: Callable[[float, int], None] | None,
    prepared: Prepared | None,
    block: Block | None,
) -> TrainState:
    names = host.names if block is None else block.names
    first = host.first_layer if block is None else block.first
    runner = lean.Lean(host, first) if lean.fits(host) else _Whole(host, first)
    prepared = {} if prepared is None else prepared
    host.load(start.adapter)
    batches: list[Any] = []
    for part in slices:
        for chosen in cut_batches(part, settings.batch_size):
            members = tuple(part[i] for i in chosen)
            if members not in prepared:
                prepared[members] = runner.collate(members)
            batches.append(prepared[members])
    if not batches:  # documents without a token to predict
        return start if block is None else TrainState(start.adapter, {}, start.step, block.names)
    parameters = host.parameters(names)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )
    if block is None:
        _restore(optimizer, host, start)
    total = settings.epochs * len(batches)
    done = 0
    ready = contextlib.nullcontext() if isinstance(runner, lean.Lean) else runner.ready()
    with ready, host.training(names):
        for epoch in range(settings.epochs):
            shuffled = list(batches)
            random.Random(hashlib.sha256(seed + epoch.to_bytes(4, "big")).digest()).shuffle(
                shuffled
            )
            for batch in shuffled:
                rate = settings.learning_rate * schedule(done, total, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = runner.loss(batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
                optimizer.step()
                done += 1
                if on_step is not None:
                    on_step(float(loss.detach()), batch.tokens)
    if block is not None:
        return TrainState(host.state(), {}, start.step + done, block.names)
    return _capture(optimizer, host, start.step + done)


def schedule(step: int, total: int, warmup: float) -> float:
    """The learning rate's factor: linear up over `warmup` of the stage, linear down to a tenth.

    >>> [round(schedule(i, 10, 0.2), 2) for i in range(10)]
    [0.5, 1.0, 1.0, 0.89, 0.78, 0.66, 0.55, 0.44, 0.33, 0.21]
    """
    rising = max(1, int(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 1.0 - 0.9 * (step - rising) / max(1, total - rising)


class _Whole:
    """Batches and losses through the model's own forward, whatever its architecture."""

    def __init__(self, host: AdapterHost, first: int) -> None:
        self._host = host
        self._first = first
        self._entering: list[Tensor] = []

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Skip the layers below the first that trains."""
        with upper_part(self._host.layers, self._first) as self._entering:
            yield

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A right-padded batch with the states that enter the first layer that trains."""
        host = self._host
        width = max(len(e.ids) for e in examples)
        ids = torch.zeros((len(examples), width), dtype=torch.long)
        targets = torch.full((len(examples), width), -100, dtype=torch.long)
        states: list[Tensor] = []
        for row, example in enumerate(examples):
            length = len(example.ids)
            ids[row, :length] = torch.tensor(example.ids)
            predicted = torch.tensor(example.loss)
            targets[row, :length][predicted] = ids[row, :length][predicted]
            if self._first > 0:
                states.append(lower_states(host.model, host.layers, self._first, example.ids))
        hidden = None
        if states:
            hidden = torch.zeros((len(states), width, states[0].shape[-1]), dtype=states[0].dtype)
            for row, state in enumerate(states):
                hidden[row, : state.shape[0]] = state
        device = host.base.device
        return Batch(
            ids.to(device),
            targets.to(device),
            None if hidden is None else hidden.to(device),
            sum(len(e.ids) for e in examples),
        )

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the predicted tokens; the head runs from the first of them on."""
        self._entering[:] = [] if batch.hidden is None else [batch.hidden]
        predicted = (batch.targets != -100).any(dim=0).nonzero()  # columns with loss
        first = int(predicted[0]) if len(predicted) else 1
        keep = torch.arange(first - 1, batch.ids.shape[1] - 1, device=batch.ids.device)
        base = self._host.base
        # one forward each: autocast keeps the weights that it has cast until its block ends
        with torch.autocast(
            base.device.type, torch.bfloat16, enabled=base.model.dtype == torch.bfloat16
        ):
            # right padding under a causal mask: no attention mask is needed for the real tokens
            logits = self._host.model(
                input_ids=batch.ids, use_cache=False, logits_to_keep=keep
            ).logits  # (B, K, V)
        targets = batch.targets[:, first:]  # (B, K)
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)


def _restore(optimizer: torch.optim.AdamW, host: AdapterHost, start: TrainState) -> None:
    if not start.moments:
        return
    for name, parameter in zip(host.names, host.parameters(), strict=True):
        optimizer.state[parameter] = {
            "step": torch.tensor(float(start.step)),
            "exp_avg": start.moments[f"exp_avg.{name}"].clone().to(parameter.device),
            "exp_avg_sq": start.moments[f"exp_avg_sq.{name}"].clone().to(parameter.device),
        }


def _capture(optimizer: torch.optim.AdamW, host: AdapterHost, step: int) -> TrainState:
    moments: dict[str, Tensor] = {}
    for name, parameter in zip(host.names, host.parameters(), strict=True):
        for kind in ("exp_avg", "exp_avg_sq"):
            moments[f"{kind}.{name}"] = optimizer.state[parameter][kind].detach().cpu().clone()
    return TrainState(host.state(), moments, step)
