"""Train what is missing in a workspace, in this process and beside others that do the same.

The writer's lock is held to prepare and to keep a finished checkpoint, not while training: a takedown
can be accepted meanwhile. While it trains a shard, a process holds that shard's own lock, so that no
two do the same work.

Guarantees: the checkpoints are the same whichever processes trained them, since each is a pure function
of its inputs; before one is kept its inputs are looked up again, so that what was fenced meanwhile is
never kept, and its training stops at the next step; a process that is killed gives its shard back; one
call closes one generation, however many processes it starts.
Nothing of a text leaves the process but into sealed checkpoints. Not guaranteed: speed from more processes
than cores; each holds a base model of its own and as many threads as the recipe says.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import Damaged, KeyDestroyed, WorkspaceLocked
from llm_unlearn.opened import Opened
from llm_unlearn.pace import learn_pace, read_sizes, work
from llm_unlearn.retrieval.lock import WriterLock
from llm_unlearn.sisa.build import Progress, ShardState, build, planned_steps, stale
from llm_unlearn.sisa.declared import check_all
from llm_unlearn.sisa.layout import Slice
from llm_unlearn.writing import writing

if TYPE_CHECKING:
    from llm_unlearn.sisa.train import TrainState

Writing = Callable[[bool], AbstractContextManager[None]]  # told whether to finish takedowns first
_PAUSE = 0.05
_PATIENCE = 3.0  # for another process that prepares to train; a longer writer is told of


@dataclass(frozen=True)
class Trained:
    """What a training run did: checkpoints built and disposed of, steps taken, and how long.

    `built` names what was missing and is there now, whichever process built it; `steps` are those
    planned for them.
    """

    built: tuple[str, ...]
    disposed: tuple[str, ...]
    steps: int
    seconds: float


class _Outdated(Exception):
    """What is being trained is no longer asked for."""


def train(
    opened: Opened,
    writing: Writing,
    *,
    progress: Progress | None = None,
    shards: Collection[int] | None = None,
    retrain_all: bool = False,
    repair: bool = False,
    processes: int = 1,
    bring_back: bool = False,
) -> Trained:
    """See `Workspace.train`."""
    # before the lock is taken, since it loads models
    loaded, begun = opened.models.loaded, time.monotonic()
    recipe = opened.current_recipe() if retrain_all else opened.check_recipe()
    loading = None if loaded else time.monotonic() - begun
    # a damaged checkpoint may be what an unfinished takedown waits for
    with _patiently(writing, not repair, _PATIENCE):
        if recipe != opened.saved_recipe():
            check_all(opened.vault, recipe.training.placement)
        with opened.database.transaction():
            opened.database.set_value("recipe", recipe.model_dump_json().encode())
            opened.database.set_value("recipe digest", recipe.digest)
            opened.ledger.close_generation()
            if bring_back or retrain_all:
                opened.database.set_value("dropped shards", b"[]")
        doomed = stale(opened.wanted(), opened.checkpoints.listed())
        if repair:
            doomed += opened.checkpoints.unreadable()
        disposed = opened.checkpoints.dispose(doomed)
        states = _asked(opened, shards)
    missing = [part.name for state in states for part in state.missing]
    steps = sum(planned_steps(state, opened.training) for state in states)
    started = time.monotonic()
    others = _start(opened, shards, min(processes, len([s for s in states if s.missing])) - 1)
    try:
        own = _train_missing(opened, writing, shards, steps, progress)
    finally:
        for other in others:
            other.terminate()  # nothing is left to train, or this process is being stopped
            other.join()
    seconds = time.monotonic() - started
    if steps and own >= steps:  # all of it was done here
        # history, not answering state: it only feeds the estimates of later plans
        done = work(states, opened.training, read_sizes(opened.database))
        with _patiently(writing, False, None), opened.database.transaction():
            learn_pace(opened.database, seconds, done, loading)
    if repair:
        with writing(True):
            pass
    listed = opened.checkpoints.listed()
    built = tuple(name for name in missing if name in listed)
    return Trained(built, tuple(disposed), steps, seconds)


def _asked(opened: Opened, shards: Collection[int] | None) -> list[ShardState]:
    dropped = opened.dropped()
    return [
        state
        for state in opened.states()
        if state.shard not in dropped and (shards is None or state.shard in shards)
    ]


def _train_missing(
    opened: Opened,
    writing: Writing,
    shards: Collection[int] | None,
    total: int,
    progress: Progress | None,
) -> int:
    """Until nothing asked for is missing; returns the steps taken here."""
    done = 0

    def step(label: str, _done: int, _total: int, loss: float) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(label, done, max(done, total), loss)

    while missing := [state for state in _asked(opened, shards) if state.missing]:
        before = done
        for state in missing:
            with _shard_lock(opened.path, state.shard) as held:
                if held:
                    _train_shard(opened, writing, state.shard, step)
        if done == before:  # other processes hold all of them; one that dies gives its shard back
            time.sleep(_PAUSE)
    return done


def _train_shard(opened: Opened, writing: Writing, shard: int, step: Progress) -> None:
    states = _asked(opened, [shard])  # under the lock: another process may just have finished it
    parts = {part.name: part for state in states for part in state.wanted}
    seen = opened.database.change()

    def watching(label: str, done: int, total: int, loss: float) -> None:
        nonlocal seen
        step(label, done, total, loss)
        if opened.database.change() != seen:
            seen = opened.database.change()
            _check_asked(opened, parts[label])

    def keep(part: Slice, state: TrainState) -> None:
        with _patiently(writing, False, None):
            _check_asked(opened, part)
            found = opened.checkpoints.listed().get(part.name)
            if found is not None and found.inputs == part.inputs:
                return  # a takedown that went on meanwhile has built it, to the same bytes
            opened.checkpoints.dispose([] if found is None else [found])
            opened.checkpoints.save(part, state)

    try:
        build(
            states,
            opened.models.host,
            opened.checkpoints,
            opened.training,
            opened.examples,
            watching,
            keep,
        )
    except _Outdated:
        pass  # the next look sees what is asked for now
    except (Damaged, KeyDestroyed, KeyError):
        if _asked(opened, [shard]) == states:
            raise  # not because something was taken down while it was read


def _check_asked(opened: Opened, part: Slice) -> None:
    asked = opened.wanted().get(part.shard, [])
    if (part.name, part.inputs) not in [(now.name, now.inputs) for now in asked]:
        raise _Outdated
    if part.shard in opened.dropped():  # a takedown retired it meanwhile
        raise _Outdated


@contextmanager
def _shard_lock(path: Path, shard: int) -> Iterator[bool]:
    lock = WriterLock(path / f"lock.shard-{shard:02d}")
    try:
        lock.acquire()
    except WorkspaceLocked:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _patiently(writing: Writing, resuming: bool, seconds: float | None) -> Iterator[None]:
    """Hold the writer's lock, waiting for whoever has it now, for ever where `seconds` is None."""
    end = None if seconds is None else time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(writing(resuming))
                break
            except WorkspaceLocked:
                if end is not None and time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)
        yield


def _start(opened: Opened, shards: Collection[int] | None, count: int) -> list[BaseProcess]:
    context = multiprocessing.get_context("spawn")
    asked = None if shards is None else sorted(shards)
    others: list[BaseProcess] = []
    for _ in range(count):
        given = (opened.path, opened.keyring.directory, asked, os.getpid())
        other = context.Process(target=_help, args=given, daemon=True)
        other.start()
        others.append(other)
    return others


def _help(path: Path, keys: Path, shards: list[int] | None, parent: int) -> None:
    """Train beside the process that started this one, as long as it lives.

    It prepares nothing: the other has closed the generation, and how many help must decide no bits.
    """
    from llm_unlearn.workspace import Workspace

    class Orphaned(Exception):
        pass

    def step(_label: str, _done: int, _total: int, _loss: float) -> None:
        if os.getppid() != parent:
            raise Orphaned

    try:
        with Workspace.open(path, keys=keys) as workspace:
            opened = workspace.opened
            opened.check_recipe()
            _train_missing(
                opened, lambda resuming: writing(opened, resuming=resuming), shards, 0, step
            )
    except (KeyboardInterrupt, Orphaned, WorkspaceLocked):
        pass  # the one that started it trains the rest
