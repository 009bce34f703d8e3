"""What orders and blocks of slices cost and gain, measured beside plain slices (S3T's question).

The same documents are trained as one shard four ways: plain slices or blocks of layers, in one order or in
several. Of each: the bytes of its checkpoints, the time to train, what it knows (mean probability of the
documents' own answers), how many deletions of one subject after another it serves through before nothing
serves, and what it still knows of the documents that are left after each of them.

Guarantees: lives are drawn from all orders of the subjects by a fixed seed, the same for every way; which
slices serve is computed by the code that serves, from the real layout; knowledge is measured on the real
checkpoints. Not measured: utility beside the documents, and shards, which only multiply.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_unlearn.config import Config
from llm_unlearn.deletion_bench import all_training, without
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import encode_chats
from llm_unlearn.eval.memorization import verbatim_probability
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.eval.summary import Estimate, bootstrap
from llm_unlearn.opened import Models, Opened
from llm_unlearn.sisa.build import ShardState
from llm_unlearn.sisa.orders import deletions_survived
from llm_unlearn.workspace import Workspace

_LIVES = 200
_ROWS = 8  # texts scored at a time


@dataclass(frozen=True)
class Way:
    """One way to slice a shard, measured.

    Attributes:
        storage: bytes of its sealed checkpoints.
        seconds: of training everything.
        known: mean probability of the answers, all documents, with the serving adapter.
        survived: deletions until nothing serves, over all lives; `expected` is the formula's.
        left: after 1, 2, ... deletions, mean probability over documents that are left, over the
            lives measured.
    """

    orders: int
    blocks: bool
    storage: int
    seconds: float
    known: Estimate
    survived: Estimate
    expected: float
    left: tuple[Estimate, ...]


def measure(
    documents: Sequence[Document],
    config: Config,
    orders: int,
    *,
    deletions: int = 3,
    lives: int = 3,
    folder: Path | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> list[Way]:
    """Measure plain slices and blocks, in one order and in several.

    Args:
        documents: conversations; every one trains.
        config: the model, the slices and how it trains.
        deletions: after how many of them knowledge is measured.
        lives: in how many lives.
        folder: where workspaces are made; default a temporary one. They are removed.

    Raises:
        InputError: too few subjects, or a document without a question and an answer.
    """
    subjects = sorted({document.subject for document in documents})
    if len(subjects) <= deletions:
        raise InputError(
            f"{len(subjects)} subjects are too few for {deletions} deletions.", "Give more of them."
        )
    for document in documents:
        if len(document.messages) != 2:
            raise InputError(
                f"Document {document.id!r} is not one question and one answer.",
                "Give JSON lines of conversations with two messages.",
            )
    drawn = random.Random(0)
    order_of = [drawn.sample(subjects, len(subjects)) for _ in range(max(_LIVES, lives))]
    models = Models(config)
    base = _Probabilities(models, documents)
    found = []
    for count in dict.fromkeys((1, orders)):
        for blocks in (False, True):
            name = f"{count} order{'s' * (count > 1)} of {'blocks' if blocks else 'plain slices'}"
            tell(f"{name}: training")
            with _trained(documents, config, count, blocks, models, folder) as (opened, seconds):
                survived = [float(_survives(opened, life)) for life in order_of[:_LIVES]]
                tell(f"{name}: measuring")
                (whole,) = opened.states()
                known = base.of(opened, whole, frozenset())
                after: list[list[float]] = [[] for _ in range(deletions)]
                for life in order_of[:lives]:
                    for number in range(deletions):
                        gone = frozenset(life[: number + 1])
                        after[number].append(statistics.fmean(base.of(opened, None, gone)))
                found.append(
                    Way(
                        count,
                        blocks,
                        _storage(opened),
                        seconds,
                        bootstrap(known),
                        bootstrap(survived),
                        deletions_survived(config.training.slices, count),
                        tuple(bootstrap(values) for values in after),
                    )
                )
    return found


class _Probabilities:
    """Probabilities of the documents' answers under what serves; each state is measured once."""

    def __init__(self, models: Models, documents: Sequence[Document]) -> None:
        self._host = models.host
        self._documents = documents
        pairs = [(d.messages[0].content, d.messages[1].content) for d in documents]
        self._encoded = encode_chats(models.host.base.tokenizer, pairs)
        self._known: dict[bytes, list[float]] = {}

    def of(self, opened: Opened, state: ShardState | None, gone: frozenset[str]) -> list[float]:
        """For each document whose subject is not gone."""
        if state is None:
            (state,) = without(opened, gone)
        key = state.serving.inputs if state.serving else b""
        if key not in self._known:
            with self._host.using(opened.adapter(state)):
                scores = score_encoded(self._host.base.model, self._encoded, _ROWS)
            self._known[key] = [verbatim_probability(each) for each in scores]
        values = zip(self._documents, self._known[key], strict=True)
        return [value for document, value in values if document.subject not in gone]


@contextmanager
def _trained(
    documents: Sequence[Document],
    config: Config,
    orders: int,
    blocks: bool,
    models: Models,
    folder: Path | None,
) -> Iterator[tuple[Opened, float]]:
    changed = all_training(config, shards=1, orders=orders, blocks=blocks)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Workspace.create(
            Path(place) / "ws", keys=Path(place) / "keys", config=changed, models=models,
            secrets={"ids": bytes(32), "placement": bytes(32)},
        )  # fmt: skip
        with made as workspace:
            workspace.ingest(documents)
            started = time.monotonic()
            workspace.train()
            yield workspace.opened, time.monotonic() - started


def _survives(opened: Opened, life: Sequence[str]) -> int:
    """How many deletions of this life the shard serves through, the one that ends it included."""
    for number in range(1, len(life)):
        if without(opened, life[:number])[0].serving is None:
            return number
    return len(life)


def _storage(opened: Opened) -> int:
    return sum(opened.checkpoints.path(name).stat().st_size for name in opened.checkpoints.listed())
