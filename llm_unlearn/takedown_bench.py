"""How soon a request is acknowledged, and what many at once cost, measured in a large workspace.

A workspace is filled with chunks of invented text under given vectors and with conversations that
sixteen (or so many) shards are trained on. Then requests are submitted one by one, each timed from
the call until its acknowledgement is there, the writer's lock included; after each it is checked
that a reader of its own, opened before, neither finds the text nor lets an adapter serve that had
learned it. At last all of them, and more, are approved and carried out as one file of many. Fixed
secrets place the people in the same shards in every run: another placing can leave nothing to train.

Not included: starting a process, and loading a base model, which a submission does not need.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from llm_unlearn.config import Config
from llm_unlearn.documents import Document, Message
from llm_unlearn.opened import Models
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.retrieval.prepare import Span
from llm_unlearn.takedown.request import Claimant, Request
from llm_unlearn.takedown.verify import verify_receipt
from llm_unlearn.workspace import Workspace

_PEOPLE = 4  # training subjects for each shard


@dataclass(frozen=True)
class Acknowledgements:
    """What was measured.

    Attributes:
        store, corpus: seconds of each submission, of stored and of learned subjects.
        readers: seconds until a reader's next search answered without the text.
        looked: seconds to find and fence the copies of all of these, in one pass.
        many: how many requests were carried out as one file.
        planned: seconds to submit and plan them.
        carried_out: seconds from the approval to the last receipt.
        trainings: how often a checkpoint was trained meanwhile, at most.
        verified: seconds to verify the last receipt, its request and the whole log.
    """

    chunks: int
    shards: int
    store: tuple[float, ...]
    corpus: tuple[float, ...]
    readers: tuple[float, ...]
    looked: float
    many: int
    planned: float
    carried_out: float
    trainings: int
    verified: float


def measure(
    config: Config,
    vectors: Floats,
    *,
    requests: int = 20,
    many: int = 1000,
    tell: Callable[[str], None] = lambda _line: None,
) -> Acknowledgements:
    """Fill a workspace with one document of one chunk for each vector, train, and measure."""
    models = Models(config)
    with tempfile.TemporaryDirectory(prefix="llm-unlearn-bench-") as folder:
        path = Path(folder) / "ws"
        made = Workspace.create(
            path, keys=Path(folder) / "keys", config=config, models=models,
            secrets={"ids": bytes(32), "placement": bytes(32)},
        )  # fmt: skip
        with made:
            shards = config.training.shards
            people = [f"person {n}" for n in range(_PEOPLE * shards)]
            made.ingest([_conversation(person) for person in people])
            tell(f"training {shards} shards")
            made.train()
            tell(f"adding {len(vectors)} chunks")
            made.opened.store.add_ready(
                (_stored(n), [_whole(n)], vectors[n : n + 1]) for n in range(len(vectors))
            )
        with (
            Workspace.open(path, models=models) as workspace,
            Workspace.open(path, models=models, readonly=True) as reader,
        ):
            reader.opened.store.search_vector(vectors[0], groups={"staff"}, k=1)
            reader.opened.states()
            store, readers = [], []
            for n in range(requests):
                subject = f"work {n}"
                start = time.perf_counter()
                workspace.desk.submit([_request(f"S-{n}", subject)], copies=False)
                store.append(time.perf_counter() - start)
                start = time.perf_counter()
                hits = reader.opened.store.search_vector(vectors[n], groups={"staff"}, k=5)
                readers.append(time.perf_counter() - start)
                if subject in {hit.subject for hit in hits}:
                    raise AssertionError(f"{subject} was found after its acknowledgement")
            corpus = []
            for n, person in enumerate(people[: min(requests, len(people) // 2)]):
                start = time.perf_counter()
                workspace.desk.submit([_request(f"C-{n}", person)], copies=False)
                corpus.append(time.perf_counter() - start)
                mark = reader.opened.vault.mark("subject", person)
                for state in reader.opened.states():
                    covered = {r.subject for p in state.wanted[: state.clean] for r in p.records}
                    if mark in covered:
                        raise AssertionError(f"an adapter that had learned {person} still serves")
            tell("looking for copies")
            start = time.perf_counter()
            workspace.desk.submit([])
            looked = time.perf_counter() - start
            tell(f"{many} requests as one file")
            run = _many(workspace, people, len(vectors), many)
    return Acknowledgements(
        len(vectors),
        config.training.shards,
        tuple(store),
        tuple(corpus),
        tuple(readers),
        looked,
        *run,
    )


def _many(
    workspace: Workspace, people: list[str], chunks: int, many: int
) -> tuple[int, float, float, int, float]:
    """How many were carried out, seconds to plan and carry out, trainings at most, seconds to verify."""
    first = chunks // 2
    subjects = people[1::2] + [f"work {first + n % (chunks - first)}" for n in range(many)]
    demands = [_request(f"M-{n}", subject) for n, subject in enumerate(subjects[:many])]
    labels: list[str] = []
    start = time.perf_counter()
    marks = [start]

    def planned(_plans: object) -> bool:
        marks.append(time.perf_counter())
        return True

    done = workspace.desk.takedown_many(
        demands,
        confirm=planned,
        progress=lambda label, _done, _total, _loss: labels.append(label),
    )
    end = time.perf_counter()
    if done is None or done.nothing:
        raise AssertionError("every request names something")
    changes = [label for n, label in enumerate(labels) if n == 0 or labels[n - 1] != label]
    trainings = max((changes.count(label) for label in changes), default=0)
    last = done.outcomes[-1]
    if last.receipt is None:
        raise AssertionError("every shard can be retrained here")
    begin = time.perf_counter()
    verify_receipt(
        last.receipt, workspace.public_key, log=last.receipt.parent, request=last.reference
    )
    verified = time.perf_counter() - begin
    return len(done.outcomes), marks[1] - start, end - marks[1], trainings, verified


def _request(id: str, subject: str) -> Request:
    return Request(
        id=id,
        kind="gdpr",
        basis="GDPR Article 17(1)(b)",
        claimant=Claimant(name="bench", contact="bench@mail.example", capacity="data subject"),
        subject=subject,
        received=datetime.now(UTC),
    )


def _text(n: int) -> str:
    rng = np.random.default_rng(n)
    words = " ".join("".join(chr(97 + c) for c in rng.integers(0, 26, 6)) for _ in range(20))
    return f"Of work {n}: {words}."


def _stored(n: int) -> Document:
    return Document(id=f"d{n}", subject=f"work {n}", text=_text(n))


def _whole(n: int) -> Span:
    return 0, len(_text(n))


def _conversation(person: str) -> Document:
    return Document(
        id=person,
        subject=person,
        license="CC0-1.0",
        messages=(
            Message(role="user", content=f"Where does {person} live?"),
            Message(
                role="assistant", content=f"By the {_text(int(person.split()[1]))[12:40]} bridge."
            ),
        ),
    )
