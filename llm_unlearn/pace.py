"""How fast this workspace trains, learned from each training, and what the next one will take.

The work of a training is counted in bytes of sealed text passed over (`read_sizes`, summed by
`work`): tokens grow with bytes, and bytes are known without the text, its key or a tokenizer.
By hand: 2 documents of 300 and 500 bytes, 3 passes each, are a work of 2400; trained in 12 s after 4 s of
loading, the pace is 0.005 s a byte, and a retraining of 1000 bytes is expected to take 4 + 5 = 9 s.

Guarantees: it is history and decides no answer; it holds two sums of the past, none of any text. Older
trainings weigh half with each new one, so that a changed machine is noticed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_unlearn.config import TrainingConfig
from llm_unlearn.retrieval.database import Database
from llm_unlearn.sisa.build import ShardState, visits

if TYPE_CHECKING:
    from llm_unlearn.opened import Opened

_KEY = "pace"


@dataclass(frozen=True)
class Pace:
    """Seconds and work of past trainings, newer ones weighing more, and of loading the model."""

    seconds: float
    work: float
    loading: float

    def expected(self, work: float, *, loaded: bool) -> float:
        """Seconds that so much work will take, with the loading of the model if it is needed."""
        if not work:
            return 0.0
        return work * self.seconds / self.work + (0.0 if loaded else self.loading)


def read_pace(database: Database) -> Pace | None:
    """What was learned so far; None before the first training."""
    saved = database.value(_KEY)
    return None if saved is None else Pace(**json.loads(saved))


def learn_pace(database: Database, seconds: float, work: float, loading: float | None) -> None:
    """Take in one training.

    Args:
        loading: how long the model took to load; None if it was in memory already.
    """
    if work <= 0 or seconds <= 0:
        return
    old = read_pace(database) or Pace(0.0, 0.0, loading or 0.0)
    new = {
        "seconds": old.seconds / 2 + seconds,
        "work": old.work / 2 + work,
        "loading": old.loading if loading is None else loading,
    }
    database.set_value(_KEY, json.dumps(new).encode())


@contextmanager
def timed(opened: Opened, states: Sequence[ShardState]) -> Iterator[Callable[[], None]]:
    """Learn from the training that is done inside, unless it fails.

    Yields:
        What to call when the model is in memory and training begins.
    """
    loaded, ready = opened.models.loaded, [0.0]
    started = time.monotonic()

    def begin() -> None:
        ready[0] = time.monotonic()

    yield begin
    ended = time.monotonic()
    done = work(states, opened.training, read_sizes(opened.database))
    with opened.database.transaction():
        learn_pace(opened.database, ended - ready[0], done, None if loaded else ready[0] - started)


def read_sizes(database: Database) -> dict[bytes, int]:
    """Bytes of each document's sealed body, by handle."""
    with database.reading() as connection:
        rows = connection.execute("SELECT handle, length(sealed) FROM parts WHERE name = 'body'")
        return {bytes(handle): int(size) for handle, size in rows}


def work(states: Iterable[ShardState], training: TrainingConfig, sizes: Mapping[bytes, int]) -> int:
    """What the missing slices will pass over: the sum over all visits of the documents' sizes.

    By hand: slices of 100 and 50, none clean, 2 passes a stage: 2 * 100 + 2 * 150 = 500; with the
    first one clean 2 * 150 = 300.

    Args:
        sizes: of each document, by handle: bytes, or tokens.
    """
    return sum(
        times * sum(sizes.get(record.handle, 0) for record in group)
        for state in states
        for group, times in visits(state, training)
    )
