"""What deleting one subject costs, measured: retraining against naive full retraining.

For each number of shards and slices a workspace is made and trained; then, for each sampled subject, what
its deletion would leave missing is trained from the last clean checkpoint, in memory, exactly as a
takedown would, and timed. Naive retraining trains one adapter over everything, for as many epochs, without
that subject. Three ratios stand side by side: measured time over naive time; the share of the tokens that
the missing slices pass over; and SISA's (2R + 1) / (3R) / S.

Guarantees: nothing is changed in the measured workspace; one subject at a time, each from the same
state. Not included: planning, deletion, disposal and probes, which do not grow with the shard.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_unlearn.config import Config
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.opened import Models, Opened
from llm_unlearn.pace import read_pace, read_sizes, work
from llm_unlearn.rederive import InMemory
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.build import Lane, ShardState, build, shard_states
from llm_unlearn.sisa.layout import Slice
from llm_unlearn.workspace import Workspace


@dataclass(frozen=True)
class Deleted:
    """One deletion: its wall time, the tokens passed over, and the time that a plan would have expected."""

    seconds: float
    tokens: int
    expected: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A number of shards and slices, measured.

    Attributes:
        naive: full retraining as one adapter.
        time_ratio: mean time of a deletion over naive time.
        token_share: mean tokens of a deletion over naive tokens.
        overhead: the first over the second: what a token costs more than in naive retraining.
        sisa: SISA's expected ratio for equal slices.
        expected: what `takedown`'s plan would have said, over what was measured.
        rollback: seconds from acceptance to the last clean checkpoint being in place, all
            shards' adapters loaded before.
    """

    shards: int
    slices: int
    deletions: tuple[Deleted, ...]
    naive: Deleted
    rollback: float

    @property
    def time_ratio(self) -> float:
        """Mean time of a deletion over naive time."""
        return statistics.mean(d.seconds for d in self.deletions) / self.naive.seconds

    @property
    def token_share(self) -> float:
        """Mean tokens of a deletion over naive tokens."""
        return statistics.mean(d.tokens for d in self.deletions) / self.naive.tokens

    @property
    def overhead(self) -> float:
        """Time ratio over token share."""
        return self.time_ratio / self.token_share if self.token_share else 0.0

    @property
    def error(self) -> float:
        """Standard error of the time ratio."""
        times = [d.seconds / self.naive.seconds for d in self.deletions]
        return statistics.stdev(times) / len(times) ** 0.5 if len(times) > 1 else 0.0

    @property
    def expected(self) -> tuple[float, ...]:
        """For each deletion that trains anything, the expected time over the measured one."""
        return tuple(d.expected / d.seconds for d in self.deletions if d.tokens)

    @property
    def sisa(self) -> float:
        """(2R + 1) / (3R) / S."""
        return (2 * self.slices + 1) / (3 * self.slices) / self.shards


def measure(
    documents: Sequence[Document],
    config: Config,
    sweep: Sequence[tuple[int, int]],
    *,
    sample: int | None = None,
    folder: Path | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> list[Measured]:
    """Measure each (shards, slices) of a sweep on the same documents and one base model.

    Args:
        config: the model and how it trains; every document trains, whatever its policy says.
        sample: so many subjects, chosen by a fixed seed; None deletes each once.
        folder: where the workspaces are made; default a temporary one. They are removed.

    Raises:
        InputError: fewer than two subjects.
    """
    subjects = sorted({document.subject for document in documents})
    if len(subjects) < 2:
        raise InputError("There is one subject only.", "Give documents of two subjects at least.")
    chosen = random.Random(0).sample(subjects, min(sample or len(subjects), len(subjects)))
    models = Models(config)
    results = []
    naive = None
    for shards, slices in sweep:
        changed = all_training(config, shards=shards, slices=slices)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Workspace.create(
                Path(place) / "ws", keys=Path(place) / "keys", config=changed, models=models
            )
            with made as workspace:
                workspace.ingest(documents)
                tell(f"{shards} shards, {slices} slices: training")
                workspace.train()
                opened = workspace.opened
                sizes = _tokens(opened)
                if naive is None:
                    tell("naive full retraining")
                    naive = _naive(opened, chosen[0], sizes)
                deletions = []
                for number, subject in enumerate(chosen, 1):
                    tell(f"{shards} shards, {slices} slices: deletion {number} of {len(chosen)}")
                    deletions.append(_delete(opened, subject, sizes))
                rollback = _rollback(workspace, chosen[0])
        results.append(Measured(shards, slices, tuple(deletions), naive, rollback))
    return results


def all_training(config: Config, **training: object) -> Config:
    """A config under which every document trains, with these settings of training."""
    plain = config.model_dump(mode="json")
    plain["training"] |= {**training, "placement": {}}
    plain["separation"] = {
        "rules": [{"name": "bench", "when": {"subject": "*"}, "then": "corpus"}],
    }
    return Config.model_validate(plain)


def _tokens(opened: Opened) -> dict[bytes, int]:
    return {
        record.handle: sum(len(example.ids) for example in opened.examples(record))
        for record in opened.vault.records(fate="corpus")
    }


def without(opened: Opened, subjects: Collection[str]) -> list[ShardState]:
    """The shards as they would stand without these subjects."""
    marks = {opened.vault.mark("subject", subject) for subject in subjects}
    gone = {r.handle for r in opened.vault.records(fate="corpus") if r.subject in marks}
    return shard_states(opened.wanted_without(gone), opened.checkpoints.listed())


def _delete(opened: Opened, subject: str, sizes: dict[bytes, int]) -> Deleted:
    states = without(opened, [subject])
    pace = read_pace(opened.database)
    if pace is None:
        raise AssertionError("the workspace was trained just before")
    owed = work(states, opened.training, read_sizes(opened.database))
    started = time.monotonic()
    build(
        states, opened.models.host, InMemory(opened.checkpoints), opened.training, opened.examples
    )
    seconds = time.monotonic() - started
    tokens = work(states, opened.training, sizes)
    return Deleted(seconds, tokens, pace.expected(owed, loaded=True))


def _naive(opened: Opened, subject: str, sizes: dict[bytes, int]) -> Deleted:
    """One adapter over all that is left, in one stage of `epochs` passes."""
    states = without(opened, [subject])
    one = opened.training.model_copy(
        update={"shards": 1, "slices": 1, "orders": 1, "blocks": False}
    )
    parts = [part for state in states for part in state.wanted]
    records = tuple(record for part in parts for record in part.records)
    whole = ShardState(0, (Lane((_slice(records),), 0),))
    started = time.monotonic()
    build([whole], opened.models.host, InMemory(), one, opened.examples)
    return Deleted(time.monotonic() - started, work([whole], one, sizes))


def _slice(records: tuple[Record, ...]) -> Slice:
    return Slice(0, (1, 0), records, bytes(32))


def _rollback(workspace: Workspace, subject: str) -> float:
    """Seconds from the moment a demand is accepted until the next answer's adapter is in place."""
    opened = workspace.opened
    loaded = {
        state.shard: opened.checkpoints.load(opened.checkpoints.listed()[state.serving.name])
        for state in opened.states()
        if state.serving
    }
    mark = opened.vault.mark("subject", subject)
    gone = [record.handle for record in opened.vault.records(fate="corpus", subject=mark)]
    opened.states()
    started = time.monotonic()
    opened.vault.set_state(gone, "fenced")
    before = {state.shard: state for state in opened.states()}
    listed = opened.checkpoints.listed()
    for shard, state in before.items():
        if state.missing and state.serving:
            loaded[shard] = opened.checkpoints.load(listed[state.serving.name])
            opened.models.host.load(loaded[shard].adapter)
        elif state.missing:
            loaded.pop(shard, None)
    return time.monotonic() - started
