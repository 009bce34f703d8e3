"""The model's thread: what one answer meets is not the others', what nobody wants is not done."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from served import Served
from tiny import byte_tokenizer

from llm_unlearn.answering import Choice
from llm_unlearn.config_serving import ServingConfig
from llm_unlearn.models.sampling import Sampler
from llm_unlearn.serve.asking import Ask
from llm_unlearn.serve.engine import Engine
from llm_unlearn.serve.guarding import Watch
from llm_unlearn.serve.job import Job, Mailbox, Piece
from llm_unlearn.serve.room import Busy
from llm_unlearn.serve.speech import Speech
from llm_unlearn.serve.streaming import streamed
from llm_unlearn.serve.track import Row, Track

TOKENIZER = byte_tokenizer()
(END,), (LETTER,) = (TOKENIZER(word, add_special_tokens=False)["input_ids"] for word in (".", "x"))
ASK: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "What is it?"}]}


def _engine(number: Callable[[], int] = lambda: 1, **serving: Any) -> Engine:
    """One that was not started: its rounds are made by the test."""
    base = SimpleNamespace(stop_ids=(END,), tokenizer=TOKENIZER)
    watch: Any = SimpleNamespace(number=number)
    host: Any = SimpleNamespace(base=base)
    return Engine(lambda: host, watch, ServingConfig(**serving))


def _job(most: int = 5) -> Job:
    return Job(Ask({}, "base", frozenset()), Sampler, most)


def _beside(served: Served, bad: dict[str, Any]) -> tuple[httpx.Response, list[int]]:
    """What a request is told that comes while another is answered, and that one's status."""
    client, statuses = served.http(), list[int]()

    def ask() -> None:
        long = {**ASK, "max_tokens": 150, "temperature": 1.0, "seed": 1}
        statuses.append(client.post("/v1/chat/completions", json=long).status_code)

    other = threading.Thread(target=ask)
    other.start()
    assert served.backend is not None
    while not served.backend.engine.load[1]:
        time.sleep(0.001)
    told = served.http().post("/v1/chat/completions", json=bad)
    other.join(60)
    return told, statuses


def test_a_conversation_that_the_template_refuses_ends_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.backend is not None
    tokenizer = served.backend.reader.opened.models.host.base.tokenizer
    strict = "{% if messages|length > 1 %}{{ raise_exception('turns alternate') }}{% endif %}"
    words = "{% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", strict + words)
    turns = {**ASK, "messages": [{"role": "user", "content": "One."}] * 2}
    told, statuses = _beside(served, turns)
    assert (told.status_code, statuses) == (400, [200])
    assert "turns alternate" in told.text


def test_the_coldest_draw_is_the_likeliest() -> None:
    logits = torch.tensor([1.0, 200.0, -3.0])
    for temperature in (1e-40, 1e-30, 5e-324, 9e-5):
        sampler = Sampler(temperature)
        assert sampler.draw(logits).token == 1
        assert sampler.plain
    assert not Sampler(1e-4).plain
    assert Sampler(1e-4, seed=1).draw(logits * 1e30).token == 1  # what is divided stays finite


def test_an_answer_that_cannot_be_drawn_ends_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Sampler._one

    def one(self: Sampler, logits: Any) -> int:
        if self.top_p == 0.125:
            raise RuntimeError("probability tensor contains nan")
        return drawing(self, logits)

    monkeypatch.setattr(Sampler, "_one", one)
    told, statuses = _beside(served, {**ASK, "temperature": 1.0, "top_p": 0.125})
    assert (told.status_code, statuses) == (503, [200])
    assert "nan" not in told.text


def test_a_defect_fails_what_had_begun_and_nothing_waits_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Engine, "_join", broken)
    told = served.client(base_url=served.url).post(
        "/v1/chat/completions",
        json=ASK,
        headers={"authorization": f"Bearer {served.key('reader', 'staff')}"},
        timeout=20,
    )
    assert told.status_code == 503
    monkeypatch.undo()
    assert served.http().post("/v1/chat/completions", json=ASK).status_code == 200


def test_who_leaves_the_queue_makes_room() -> None:
    engine = _engine(queue=1)
    first = _job()
    engine.submit(first)
    with pytest.raises(Busy):
        engine.submit(_job())
    engine.release(first)
    engine.submit(_job())
    assert engine.load == (1, 0)


def test_an_answer_that_changes_while_it_is_written_down_is_written_anew() -> None:
    """Revoked while the first text of it is made; a commit during the second touches nothing of it."""
    job, made, pokes = _job(), list[str](), list[int]()
    job.put(Piece("old", finish="stop"))

    def write(pieces: Sequence[Piece]) -> str:
        made.append("".join(piece.text for piece in pieces))
        if len(made) == 1:
            assert job.revoke()
            job.put(Piece("new", finish="stop"))
        return made[-1]

    def fresh() -> bool:
        return len(made) < 2 or bool(pokes)

    def poke() -> None:
        pokes.append(1)
        job.wake()

    async def ask() -> str:
        return await Mailbox(job, fresh, poke).whole(write)

    assert asyncio.run(asyncio.wait_for(ask(), 10)) == "new"
    assert (made, pokes) == (["old", "new"], [1])


def test_words_whose_sources_change_while_they_are_written_are_not_streamed() -> None:
    """The first words stand, as a commit that concerns others shows; the next are taken back."""
    job, commits = _job(), [1]
    engine = _engine(lambda: commits[-1])

    def poke() -> None:
        engine._settled = commits[-1]
        job.wake()

    def tell(pieces: Sequence[Piece], _first: bool) -> list[str]:
        words = "".join(piece.finish or piece.text for piece in pieces)
        if words == "kept":
            commits.append(2)
        if words == "lost":
            assert not job.revoke()
        return [words]

    async def ask() -> list[bytes]:
        server: Any = SimpleNamespace(
            engine=SimpleNamespace(mailbox=lambda job: Mailbox(job, engine.fresh, poke)),
            access=SimpleNamespace(still=lambda _key: True),
            metrics=SimpleNamespace(first=SimpleNamespace(observe=lambda _seconds: None)),
        )
        key: Any = None
        told = []
        job.put(Piece("kept"))
        async for words in streamed(server, key, job, tell):
            told.append(words)
            job.put(Piece("lost"))
        return told

    told = asyncio.run(asyncio.wait_for(ask(), 10))
    assert told == [b"data: kept\n\n", b"data: takedown\n\ndata: [DONE]\n\n"]


def test_one_task_a_round_and_none_that_nobody_waits_for() -> None:
    engine, done = _engine(queue=3), list[int]()
    engine.call(lambda: done.append(0), lambda: False)
    engine.call(lambda: done.append(1), lambda: True)
    engine.call(lambda: done.append(2), lambda: True)
    with pytest.raises(Busy):
        engine.call(lambda: None, lambda: True)
    engine._round()
    assert done == [1]
    engine._round()
    assert done == [1, 2]


def test_settling_tells_whether_answers_were_looked_at() -> None:
    now = [1]
    engine = _engine(lambda: now[0])
    assert engine.settle(0.0)
    now[0] = 2
    assert not engine.settle(0.05)
    engine._round()
    assert engine.settle(0.05)
    now[0] = 3
    engine.stop()  # nothing answers any more
    assert engine.settle(0.05)


@pytest.mark.parametrize(("most", "tokens"), [(1, [LETTER]), (5, [LETTER, END])])
def test_the_guard_looks_at_the_end_of_an_answer_too(most: int, tokens: list[int]) -> None:
    engine, job = _engine(), _job(most)
    job.speech, job.drawing = Speech(TOKENIZER), Sampler()
    seen: list[str] = []
    job.watch = Watch((), lambda text: bool(seen.append(text)) or text == "x")
    lane: Any = SimpleNamespace(keep=lambda _: None)
    track = Track(lane, None, [Row(job, Choice("base"))])  # type: ignore[arg-type]
    for token in tokens:
        engine._say(track, track.rows, torch.eye(300)[token][None])
    assert job.pending[-1].finish == "guard"
    assert seen == ["x"]  # once, and not for every token


def test_answers_that_would_pad_one_another_wait(fresh: Callable[..., Served]) -> None:
    served = fresh(cache_tokens=600)
    assert served.backend is not None
    client, statuses, most = served.http(), [], 0

    def ask() -> None:
        long = {**ASK, "max_tokens": 400, "temperature": 1.0, "seed": 1}
        statuses.append(client.post("/v1/chat/completions", json=long).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, served.backend.engine.load[1])
        time.sleep(0.001)
    assert statuses == [200, 200, 200]
    assert most == 1
