"""What a takedown does to answers under way: nothing of it leaves after the acknowledgement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from served import Served
from small import learned, stored

from llm_unlearn import Workspace
from llm_unlearn.models.sampling import Sampler
from llm_unlearn.serve.asking import Ask
from llm_unlearn.serve.job import Job, Piece
from llm_unlearn.takedown.request import Request

LONG = {"max_tokens": 400, "temperature": 1.0, "seed": 3}


@dataclass
class Reading:
    """A stream read by a thread of its own, each piece with the moment it came."""

    words: list[tuple[float, str]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    begun: threading.Event = field(default_factory=threading.Event)

    def read(self, stream: Any) -> None:
        for chunk in stream:
            if not chunk.choices:
                continue
            if chunk.choices[0].delta.content:
                self.words.append((time.monotonic(), chunk.choices[0].delta.content))
                if len(self.words) == 5:
                    self.begun.set()
            if chunk.choices[0].finish_reason:
                self.reason = chunk.choices[0].finish_reason
                self.told = chunk.model_extra["llm_unlearn"]


def _read(served: Served, model: str, question: str) -> tuple[Reading, threading.Thread]:
    messages = [{"role": "user", "content": question}]
    stream = served.openai().chat.completions.create(
        model=model, messages=messages, stream=True, **LONG
    )
    reading = Reading()
    thread = threading.Thread(target=reading.read, args=(stream,))
    thread.start()
    assert reading.begun.wait(30)
    return reading, thread


def _submit(served: Served, subject: str) -> float:
    """From another process's point of view: submitted, and the moment of the acknowledgement."""
    with Workspace.open(served.path) as other:
        ((told,), _) = other.desk.submit([Request.internal(subject=subject)])
        assert told.fenced
        return time.monotonic()


def _ended(reading: Reading, acknowledged: float) -> None:
    assert reading.reason == "content_filter"
    assert reading.told["ended"] == "takedown"
    assert "taken down" in reading.told["reason"]
    assert reading.told["citations"] == []
    assert len(reading.words) < LONG["max_tokens"]
    # what was on its way comes at once; a reader that keeps up gets nothing afterwards
    assert all(moment < acknowledged + 0.3 for moment, _ in reading.words)


def test_streams_that_draw_on_it_end_and_others_go_on(fresh: Callable[[], Served]) -> None:
    served = fresh()
    work = stored(0, "work").text
    assert work is not None
    plain, other = _read(served, "base", "What is late?")
    reading, thread = _read(served, "workspace", work)
    acknowledged = _submit(served, "work")
    thread.join(60)
    other.join(60)
    _ended(reading, acknowledged)
    assert (plain.reason in ("stop", "length"), plain.told["ended"]) == (True, None)
    assert plain.words[-1][0] > acknowledged
    again = served.openai().chat.completions.create(
        model="workspace", messages=[{"role": "user", "content": work}], max_tokens=4
    )
    assert {c["subject"] for c in again.model_extra["llm_unlearn"]["citations"]} & {"work"} == set()


def test_a_stream_of_an_adapter_ends_when_its_shard_rolls_back(
    fresh: Callable[[], Served],
) -> None:
    served = fresh()
    with Workspace.open(served.path) as own:
        record = own.opened.vault.find(own.opened.vault.mark("id", "author-1/1"))
        shard = own.opened.shard_of(record)
    reading, thread = _read(served, f"shard-{shard}", learned(1, "author-1").messages[0].content)
    kept, other = _read(served, f"shard-{1 - shard}", "What is it?")
    acknowledged = _submit(served, "author-1")
    thread.join(60)
    other.join(60)
    _ended(reading, acknowledged)
    assert kept.told["ended"] is None


def test_an_answer_that_nobody_took_is_made_again(fresh: Callable[[], Served]) -> None:
    served = fresh()
    work = stored(0, "work").text
    messages = [{"role": "user", "content": work}]
    got: list[Any] = []

    def ask() -> None:
        got.append(
            served.openai().chat.completions.create(model="workspace", messages=messages, **LONG)
        )

    thread = threading.Thread(target=ask)
    thread.start()
    operator = served.http("operator")
    end = time.monotonic() + 30
    while "llm_unlearn_answers_decoding 1.0" not in operator.get("/metrics").text:
        assert time.monotonic() < end
    _submit(served, "work")
    thread.join(60)
    told = got[0].model_extra["llm_unlearn"]
    assert told["ended"] is None
    assert "work" not in {c["subject"] for c in told["citations"]}
    assert "llm_unlearn_answers_redone_total 1.0" in operator.get("/metrics").text


def test_what_was_made_and_not_taken_goes_too() -> None:
    job = Job(Ask({}, "base", frozenset()), Sampler, 5)
    job.put(Piece("secret"))
    assert job.revoke()  # nothing was taken: it is made again
    assert job.pending == []
    job.put(Piece("secret"))
    job.sent = True
    assert not job.revoke()
    assert job.pending == [Piece("", (), "takedown")]
    job.put(Piece("more"))  # too late
    assert [piece.text for piece in job.pending] == [""]
