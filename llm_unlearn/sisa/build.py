"""Bring the checkpoints in line with the live documents, building only what is missing.

A build system in the manner of make: each stage of each shard is asked for under the digest of its
inputs (recipe and live documents of the slices so far); a checkpoint with those inputs is clean, any
other is stale. From this follow all four of the toolkit's moves:

- rollback: the last clean checkpoint serves, from the moment a document is no longer live;
- retrain: stages after it are built again from it, each trained as the first time;
- resume: an interrupted build goes on with the first stage that is missing;
- drop: a shard without live documents asks for nothing, and its checkpoints are disposed of.

Guarantees: never-had equality of every checkpoint (promise 1), since nothing but the recipe and the
live documents enters a stage.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llm_unlearn.config import TrainingConfig
from llm_unlearn.models.chat import Example
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.checkpoints import Checkpoints, Listed
from llm_unlearn.sisa.layout import Slice

if TYPE_CHECKING:
    from llm_unlearn.models.lora import AdapterHost
    from llm_unlearn.sisa.train import StageSettings, TrainState


class Progress(Protocol):
    """Told of each optimizer step."""

    def __call__(self, label: str, done: int, total: int, loss: float, /) -> None:
        """One step of the checkpoint `label` is done, `done` of `total` in this build."""


@dataclass(frozen=True)
class ShardState:
    """One shard as it stands: the slices asked for and how many of them have a clean checkpoint."""

    shard: int
    wanted: tuple[Slice, ...]
    clean: int

    @property
    def missing(self) -> tuple[Slice, ...]:
        """Slices still to be trained, in order."""
        return self.wanted[self.clean :]

    @property
    def serving(self) -> Slice | None:
        """The slice whose checkpoint serves now; None means the base model alone."""
        return self.wanted[self.clean - 1] if self.clean else None


def shard_states(
    wanted: Mapping[int, Sequence[Slice]], listed: Mapping[str, Listed]
) -> list[ShardState]:
    """Compare what is asked for with what is there. No model is needed and nothing is changed."""
    states = []
    for shard, parts in sorted(wanted.items()):
        clean = 0
        for part in parts:
            found = listed.get(part.name)
            if found is None or found.inputs != part.inputs:
                break
            clean += 1
        states.append(ShardState(shard, tuple(parts), clean))
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
    own, seed = wanted[-1].records, _seed(training, wanted[-1].shard, *wanted[-1].stage)
    earlier = [record for part in wanted[:-1] for record in part.records]
    earlier.sort(key=lambda r: hashlib.sha256(seed + b"replay" + r.handle + r.content).digest())
    replayed = tuple(earlier[: math.ceil(training.replay * len(own))])
    return [own, replayed] if replayed else [own]


def visits(state: ShardState, training: TrainingConfig) -> Iterator[tuple[tuple[Record, ...], int]]:
    """Each group of documents that the missing stages pass over, and how often, stage by stage."""
    for position in range(state.clean, len(state.wanted)):
        for group in stage_records(state.wanted[: position + 1], training):
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
    from llm_unlearn.sisa.train import Prepared, TrainState, train_stage

    settings = stage_settings(training)
    total = sum(planned_steps(state, training) for state in states)
    done = 0
    built: list[str] = []
    for state in states:
        if not state.missing:
            continue
        current = (
            checkpoints.load(checkpoints.listed()[state.serving.name])
            if state.serving
            else TrainState(host.fresh(_seed(training, state.shard)), {}, 0)
        )
        examples: dict[bytes, Sequence[Example]] = {}
        kept: Prepared = {}
        for position in range(state.clean, len(state.wanted)):
            part = state.wanted[position]
            groups = []
            for records in stage_records(state.wanted[: position + 1], training):
                for record in records:
                    if record.handle not in examples:
                        examples[record.handle] = read(record)
                groups.append([e for record in records for e in examples[record.handle]])

            def step(loss: float, _tokens: int, part: Slice = part) -> None:
                nonlocal done
                done += 1
                if progress is not None:
                    progress(part.name, done, total, loss)

            seed = _seed(training, state.shard, *part.stage)
            before = current
            current = train_stage(host, before, groups, settings, seed, step, kept)
            if current.step > before.step and all(
                current.adapter[n].equal(before.adapter[n]) for n in host.names
            ):
                raise AssertionError(f"training {part.name} moved no weight")
            (keep or checkpoints.save)(part, current)
            built.append(part.name)
    return built


def _seed(training: TrainingConfig, *place: int) -> bytes:
    return hashlib.sha256(repr((training.seed, *place)).encode()).digest()
