"""Bring the checkpoints in line with the live documents, building only what is missing.

A build system in the manner of make: each stage of each shard is asked for under the digest of its
inputs (recipe and live documents of the slices so far); a checkpoint with those inputs is clean, any
other is stale. From this follow all four of the toolkit's moves:

- rollback: the last clean checkpoint serves, from the moment a document is no longer live;
- retrain: stages after it are built again from it, each trained as the first time;
- resume: an interrupted build goes on with the first stage that is missing;
- drop: a shard without live documents asks for nothing, and its checkpoints are disposed of.

With several orders a shard has a lane for each, built in the same way; the one that knows most serves.
With blocks a stage trains the layers of its own block and leaves the others as they are, so that what a
deletion makes stale is what is switched off.

Guarantees: never-had equality of every checkpoint (promise 1), since nothing but the recipe and the
live documents enters a stage.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from llm_unlearn.config import TrainingConfig
from llm_unlearn.models.chat import Example
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.checkpoints import Checkpoints, Listed
from llm_unlearn.sisa.layout import Slice

if TYPE_CHECKING:
    from llm_unlearn.models.lora import AdapterHost
    from llm_unlearn.sisa.train import Prepared, StageSettings, TrainState


class Progress(Protocol):
    """Told of each optimizer step."""

    def __call__(self, label: str, done: int, total: int, loss: float, /) -> None:
        """One step of the checkpoint `label` is done, `done` of `total` in this build."""


@dataclass(frozen=True)
class Lane:
    """One order of a shard's slices: those asked for, and how many of them have a clean checkpoint."""

    wanted: tuple[Slice, ...]
    clean: int

    @property
    def missing(self) -> tuple[Slice, ...]:
        """Slices still to be trained, in order."""
        return self.wanted[self.clean :]

    @property
    def documents(self) -> int:
        """How many documents its last clean checkpoint was trained on."""
        return sum(len(part.records) for part in self.wanted[: self.clean])


@dataclass(frozen=True)
class ShardState:
    """One shard as it stands: its lanes, one for each order of its slices."""

    shard: int
    lanes: tuple[Lane, ...]

    @property
    def best(self) -> Lane:
        """The lane that serves: the one that knows most documents; among equals the first."""
        return max(self.lanes, key=lambda lane: lane.documents, default=Lane((), 0))

    @property
    def wanted(self) -> tuple[Slice, ...]:
        """The slices of the lane that serves."""
        return self.best.wanted

    @property
    def clean(self) -> int:
        """How many of them serve."""
        return self.best.clean

    @property
    def missing(self) -> tuple[Slice, ...]:
        """Slices still to be trained, of all lanes."""
        return tuple(part for lane in self.lanes for part in lane.missing)

    @property
    def serving(self) -> Slice | None:
        """The slice whose checkpoint serves now; None means the base model alone."""
        best = self.best
        return best.wanted[best.clean - 1] if best.clean else None


def shard_states(
    wanted: Mapping[int, Sequence[Slice]], listed: Mapping[str, Listed]
) -> list[ShardState]:
    """Compare what is asked for with what is there. No model is needed and nothing is changed."""
    states = []
    for shard, parts in sorted(wanted.items()):
        lanes = []
        for _, members in itertools.groupby(parts, key=lambda part: part.order):
            lane, clean = tuple(members), 0
            for part in lane:
                found = listed.get(part.name)
                if found is None or found.inputs != part.inputs:
                    break
                clean += 1
            lanes.append(Lane(lane, clean))
        states.append(ShardState(shard, tuple(lanes)))
    return states


def stale(wanted: Mapping[int, Sequence[Slice]], listed: Mapping[str, Listed]) -> list[Listed]:
    """Checkpoints that no longer equal what is asked for under their name."""
    asked = {part.name: part.inputs for parts in wanted.values() for part in parts}
    return [item for item in listed.values() if asked.get(item.name) != item.inputs]


def stage_settings(training: TrainingConfig) -> StageSettings:
    """How each stage trains; see `_passes`."""
    from llm_unlearn.sisa.train import StageSettings

    return StageSettings(
        epochs=_passes(training),
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        clip=training.clip,
    )


def _passes(training: TrainingConfig) -> int:
    """Passes per stage such that a full set of slices costs `epochs` passes over the shard.

    SISA's correction (Bourtoule et al. 2021, section V-B): with S slices and cumulative stages of e'
    passes, the work is e' (S + 1) / 2 shard passes, so e' = 2 epochs / (S + 1). A sequential stage
    sees its own slice alone, so e' = epochs; its replay comes on top.
    """
    if training.slicing == "sequential":
        return training.epochs
    return max(1, round(2 * training.epochs / (training.slices + 1)))


def stage_records(wanted: Sequence[Slice], training: TrainingConfig) -> list[tuple[Record, ...]]:
    """What the last of these slices of one shard trains on, in groups that share no batch.

    Cumulative: every slice so far. Sequential: the slice, and a replay of earlier ones, as many
    documents as `replay` of its own, rounded up; those with the smallest hashes under the stage's
    seed, so that a deletion replaces no more than itself. All of them are in the chain of inputs.
    """
    if training.slicing == "cumulative":
        return [part.records for part in wanted]
    own, seed = wanted[-1].records, _seed(training, wanted[-1])
    earlier = [record for part in wanted[:-1] for record in part.records]
    earlier.sort(key=lambda r: hashlib.sha256(seed + b"replay" + r.handle + r.content).digest())
    replayed = tuple(earlier[: math.ceil(training.replay * len(own))])
    return [own, replayed] if replayed else [own]


def visits(state: ShardState, training: TrainingConfig) -> Iterator[tuple[tuple[Record, ...], int]]:
    """Each group of documents that the missing stages pass over, and how often, stage by stage."""
    for lane in state.lanes:
        for position in range(lane.clean, len(lane.wanted)):
            for group in stage_records(lane.wanted[: position + 1], training):
                yield group, _passes(training)


def planned_steps(state: ShardState, training: TrainingConfig) -> int:
    """Optimizer steps that the missing slices take, if each document is one example."""
    return sum(
        -(-len(group) // training.batch_size) * passes for group, passes in visits(state, training)
    )


def build(
    states: Sequence[ShardState],
    host: AdapterHost,
    checkpoints: Checkpoints,
    training: TrainingConfig,
    read: Callable[[Record], Sequence[Example]],
    progress: Progress | None = None,
    keep: Callable[[Slice, TrainState], None] | None = None,
) -> list[str]:
    """Train what is missing, one checkpoint at a time, each durable before the next begins.

    Args:
        read: a document's training examples.
        keep: makes a finished checkpoint durable; by default it is saved at once.

    Returns:
        Names of the checkpoints built.
    """
    total = sum(planned_steps(state, training) for state in states)
    done = 0

    def step(name: str, loss: float) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(name, done, total, loss)

    built: list[str] = []
    for state in states:
        examples = cache(read)  # a shard's, let go of with the shard
        kept: Prepared = {}
        for lane in state.lanes:
            if lane.missing:
                start = _start(lane, host, checkpoints, training)
                for part, made in _stages(lane, host, start, training, examples, kept, step):
                    (keep or checkpoints.save)(part, made)
                    built.append(part.name)
    return built


def _stages(
    lane: Lane,
    host: AdapterHost,
    start: TrainState,
    training: TrainingConfig,
    examples: Callable[[Record], Sequence[Example]],
    kept: Prepared,
    on_step: Callable[[str, float], None],
) -> Iterator[tuple[Slice, TrainState]]:
    """Train a lane's missing slices one after the other."""
    from llm_unlearn.sisa.train import TrainState, train_stage

    settings = stage_settings(training)
    state = start
    for position in range(lane.clean, len(lane.wanted)):
        part = lane.wanted[position]
        groups = [
            [e for record in records for e in examples(record)]
            for records in stage_records(lane.wanted[: position + 1], training)
        ]
        block = host.block(part.place, training.slices) if training.blocks else None
        if block and all(earlier.place != part.place for earlier in lane.wanted[:position]):
            fresh = host.fresh(_seed(training, part, lane=True))
            adapter = dict(state.adapter) | {name: fresh[name] for name in block.names}
            state = TrainState(adapter, state.moments, state.step)
        before = state

        def step(loss: float, _tokens: int, name: str = part.name) -> None:
            on_step(name, loss)

        seed = _seed(training, part)
        # layers below a block have adapters of their own, so its batches serve no other stage
        state = train_stage(
            host, before, groups, settings, seed, step, None if block else kept, block
        )
        if state.step > before.step and all(
            state.adapter[name].equal(before.adapter[name]) for name in host.names
        ):
            raise AssertionError(f"training {part.name} moved no weight")
        yield part, state


def _start(
    lane: Lane, host: AdapterHost, checkpoints: Checkpoints, training: TrainingConfig
) -> TrainState:
    """Where the first missing stage of a lane begins."""
    from llm_unlearn.sisa.train import TrainState

    if lane.clean:
        return checkpoints.load(checkpoints.listed()[lane.wanted[lane.clean - 1].name])
    fresh = host.fresh(_seed(training, lane.wanted[0], lane=True))
    if (
        training.blocks
    ):  # a layer whose block is not trained is switched off, and its place left empty
        fresh = {name: tensor.new_zeros(tensor.shape) for name, tensor in fresh.items()}
    return TrainState(fresh, {}, 0)


def _seed(training: TrainingConfig, part: Slice, *, lane: bool = False) -> bytes:
    """What decides the random choices of a slice, or of where its lane begins."""
    place: tuple[object, ...] = (part.shard,) if lane else (part.shard, *part.stage)
    if part.order:
        place = (*place, "order", part.order)
    return hashlib.sha256(repr((training.seed, *place)).encode()).digest()
