"""A thousand connections and takedowns under way: nothing breaks, nothing leaks, nothing removed is told.

Short and on a tiny model in the gate; with SOAK set ten minutes, with LOAD_REAL the packaged models.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from served import DOCUMENTS, Served, start, workspace_at

from llm_unlearn import Config

SECONDS = float(os.environ.get("LOAD_SECONDS", 600 if os.environ.get("SOAK") else 5))
REAL = bool(os.environ.get("LOAD_REAL"))
CONNECTIONS = 1000
_DELTA = re.compile(rb'"content": ?"((?:[^"\\]|\\.)*)"')
_LATE = 0.5  # what was on its way when the acknowledgement came


def _name() -> str:
    """Two made-up words that an embedder tells from others."""
    syllables = ["".join(random.choice(s) for s in ("bdgklmnprstvz", "aeiou")) for _ in range(6)]
    return " ".join("".join(part).capitalize() for part in (syllables[:3], syllables[3:]))


@dataclass
class Load:
    """One load, its clients and what they saw."""

    port: int
    key: str
    operator: str
    end: float
    statuses: Counter[int] = field(default_factory=Counter)
    subjects: list[str] = field(default_factory=lambda: ["work", "keep-0"])
    words: dict[str, str] = field(default_factory=dict)  # of a document, and its subject
    told: set[str] = field(default_factory=set)  # words that came in an answer
    removed: dict[str, float] = field(default_factory=dict)  # words, and when it was acknowledged
    told_late: list[str] = field(default_factory=list)
    asked_late: int = 0  # answers about what had been told and was removed before they were asked
    ended: int = 0  # by a takedown
    answers: int = 0

    @property
    def on(self) -> bool:
        """Until the end; on a machine that is busy, until there is something to look at."""
        now = time.monotonic()
        seen = self.told & self.removed.keys() and self.asked_late and self.answers > 10
        return now < self.end or (not seen and now < self.end + 60)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    def head(self, method: str, path: str, length: int, key: str | None = None) -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key or self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        ).encode()

    def look(self, before: str, new: str, moment: float) -> None:
        """Look through all that comes for words whose last letters came after their removal."""
        text = before[-200:] + new
        fresh = len(text) - len(new)
        for words in self.words if "secret-" in text else ():
            if text.rfind(words) + len(words) <= fresh or words not in text:
                continue
            self.told.add(words)
            if moment > self.removed.get(words, math.inf) + _LATE:
                self.told_late.append(words)

    async def ask(self, body: bytes, key: str | None = None, path: str = "") -> bytes:
        reader, writer = await self.connect()
        try:
            writer.write(self.head("POST", path or "/v1/chat/completions", len(body), key) + body)
            received, said = b"", ""
            while piece := await reader.read(1 << 16):
                moment = time.monotonic()
                last = received[-200:].decode("utf-8", "replace")
                self.look(last, piece.decode("utf-8", "replace"), moment)
                received += piece
                whole = b"".join(_DELTA.findall(received)).decode("utf-8", "replace")
                self.look(said, whole[len(said) :], moment)  # a stream gives words in pieces
                said = whole
            if received:
                self.statuses[int(received.split(b" ", 2)[1])] += 1
            self.ended += re.search(rb'"ended": ?"takedown"', received) is not None
            return received
        finally:
            writer.close()

    async def asker(self, number: int) -> None:
        chance = random.Random(number)
        while self.on:
            now, ever = [*self.subjects[:2], *self.subjects[-4:]], self.subjects[2:] or ["nothing"]
            about = chance.choice([*now, chance.choice(ever), chance.choice(ever)])  # or gone
            body = {
                "model": chance.choice(["workspace", "base", "ensemble", "route", "shard-0"]),
                "messages": [{"role": "user", "content": f"What does {about} keep?"}],
                "max_tokens": chance.choice([2, 8, 40]),
                "stream": chance.random() < 0.5,
            }
            began = time.monotonic()
            answer = await self.ask(json.dumps(body).encode())
            self.answers += bool(answer)
            late = [w for w, subject in self.words.items() if subject == about and w in self.told]
            if answer[9:12] == b"200" and body["model"] in ("workspace", "ensemble", "route"):
                self.asked_late += any(began > self.removed.get(w, math.inf) + _LATE for w in late)
            await asyncio.sleep(0.01)

    async def malformed(self, number: int) -> None:
        chance = random.Random(number)
        while self.on:
            body = bytes(chance.randrange(256) for _ in range(chance.choice([0, 1, 50, 5000])))
            if chance.random() < 0.3:
                reader, writer = await self.connect()
                writer.write(body + b"\r\n\r\n")  # not even HTTP
                await asyncio.wait_for(reader.read(1 << 16), 60)
                writer.close()
            else:
                await self.ask(body)
            await asyncio.sleep(0.05)

    async def leaver(self, number: int) -> None:
        """Begins a stream and is killed in the middle of it."""
        body = json.dumps(
            {
                "model": "base",
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 400,
                "temperature": 1,
                "stream": True,
            }
        ).encode()
        while self.on:
            reader, writer = await self.connect()
            writer.write(self.head("POST", "/v1/chat/completions", len(body)) + body)
            await reader.read(100)
            writer.transport.abort()
            await asyncio.sleep(0.2 + number * 0.05)

    async def idler(self, number: int) -> None:
        """Connects, says half a header or nothing, and waits to be cut off; then again."""
        while self.on:
            try:
                reader, writer = await self.connect()
                writer.write(
                    [b"", b"GET /hea", b"POST /v1/chat/completions HTTP/1.1\r\n"][number % 3]
                )
                await asyncio.wait_for(reader.read(), max(1.0, self.end - time.monotonic()))
                writer.close()
            except (TimeoutError, ConnectionError):
                writer.close()

    async def taker(self) -> None:
        """Adds documents, and takes each down once it was told, while it is asked about."""
        wait = 60 if REAL else min(1.0, SECONDS / 8)  # the longest that one stays
        live: dict[str, tuple[str, float]] = {}
        number = 0
        while self.on:
            while len(live) < 3:
                number += 1
                words = f"secret-{number}-{random.getrandbits(64):x}"
                subject = f"{_name()} load-{number}"
                document = {
                    "id": subject,
                    "subject": subject,
                    "license": "none",
                    "text": f"{subject} keeps the letter {words} in a drawer.",
                }
                self.words[words] = subject
                await self.write("/v1/documents", {"documents": [document]})
                self.subjects.append(subject)
                live[subject] = words, time.monotonic() + wait
            for subject, (words, end) in list(live.items()):
                if words in self.told or time.monotonic() > end:
                    await self.write("/v1/takedowns", {"subject": subject})
                    self.removed[words] = time.monotonic()
                    del live[subject]
            await asyncio.sleep(0.05)

    async def write(self, path: str, body: dict[str, Any]) -> None:
        told = await self.ask(json.dumps(body).encode(), self.operator, path)
        assert b"201" in told.split(b"\r\n")[0], told


@pytest.fixture(scope="module")
def served(
    fresh: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A process of its own, so that its memory and files can be counted, and it can be ended."""
    serving: dict[str, Any] = {"rate": 10_000_000, "queue": 64}
    guard = {"rules": [{"licenses": ["none"], "verbatim_words": 30}]}  # longer than the documents
    if not REAL:
        yield fresh(process=True, guard=guard, **serving)
        return
    path = tmp_path_factory.mktemp("real") / "ws"
    training = {"shards": 2, "slices": 2, "epochs": 2}
    config = Config.model_validate(
        {
            "training": training,
            "serving": serving,
            "guard": guard,
            "takedown": {"fence_flagged": False},  # they are all of one template
            "separation": {
                "rules": [
                    {"name": "open", "when": {"license": ["CC0-1.0"]}, "then": "corpus"},
                ]
            },
        }
    )
    workspace_at(path, config, DOCUMENTS)
    served = start(path)
    yield served
    served.close()


@pytest.mark.timeout(SECONDS + 600)
def test_a_thousand_connections_and_takedowns(served: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    assert served.process is not None
    process = psutil.Process(served.process.pid)
    operator = served.http("operator")
    key, other = served.key("reader", "staff"), served.key("operator", "staff")

    async def run(seconds: float, scale: int) -> Load:
        load = Load(served.port, key, other, time.monotonic() + seconds)
        tasks = [load.taker(), *(load.asker(n) for n in range(12 * scale))]
        tasks += [load.malformed(n) for n in range(4 * scale)]
        tasks += [load.leaver(n) for n in range(4 * scale)]
        tasks += [load.idler(n) for n in range((CONNECTIONS - 20 * scale) if scale > 1 else 10)]
        await asyncio.gather(*tasks)
        return load

    try:
        # what is made once is made, and what a full batch takes is taken
        before = asyncio.run(run(max(1.0, SECONDS / 10), 2) if REAL else run(1.0, 1))
        base_memory, base_files = process.memory_info().rss, process.num_fds()
        load = asyncio.run(run(SECONDS, 2))
        end = time.monotonic() + 30
        while process.num_fds() > base_files + 5 and time.monotonic() < end:
            time.sleep(0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert before.told_late == load.told_late == []
    assert load.told & load.removed.keys()
    assert load.asked_late
    assert load.answers > 10
    # 504: what waited longer than an answer may take
    assert set(load.statuses) <= {200, 201, 400, 404, 429, 503, 504}, load.statuses
    assert load.statuses[400] > 0
    assert process.num_fds() <= base_files + 5
    grown = process.memory_info().rss - base_memory
    assert grown < (200 << 20), grown
    assert operator.get("/health").status_code == 200
    assert "defect" not in served.log()
    left = operator.get("/metrics").text
    assert "llm_unlearn_answers_decoding 0.0" in left
    print(
        f"{load.answers} answers, {dict(load.statuses)}, {len(load.removed)} takedowns, "
        f"{len(load.told)} told before, {load.asked_late} asked about after, {load.ended} ended by one, "
        f"{grown >> 20} MiB more, {process.num_fds() - base_files} files more"
    )


def test_the_end_lets_answers_finish_and_logs_hold_no_text(served: Served) -> None:
    assert served.process is not None
    long = {
        "model": "base",
        "messages": [{"role": "user", "content": "Unrepeatable question"}],
        "stream": True,
        "max_tokens": 60 if REAL else 200,
        "temperature": 1.0,
        "seed": 1,
    }
    with served.http().stream("POST", "/v1/chat/completions", json=long) as stream:
        lines = stream.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert served.process.wait(30) in (0, -signal.SIGTERM)
    log = served.log()
    assert not [
        words for words in ("Unrepeatable", "secret-", "load-", served.key()) if words in log
    ]
    told = json.loads(log.rsplit("llm_unlearn.serve ", 1)[1].splitlines()[0])
    assert (told["route"], told["status"]) == ("/v1/chat/completions", 200)
