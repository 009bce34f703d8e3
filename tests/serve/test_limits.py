"""Keys, roles, limits, slow clients, logs and the end of the server, over raw sockets too."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from served import Served

from llm_unlearn.errors import AccessDenied, Damaged, InputError, NotFound
from llm_unlearn.models.sampling import Sampler
from llm_unlearn.retrieval import embedding
from llm_unlearn.serve.access import AccessKeys
from llm_unlearn.serve.asking import Ask
from llm_unlearn.serve.speech import Speech

ASK = {"model": "base", "messages": [{"role": "user", "content": "Unrepeatable question"}]}


def test_keys_are_hashed_and_revocable(tmp_path: Path) -> None:
    keys = AccessKeys(tmp_path)
    with pytest.raises(AccessDenied):
        keys.check("")
    key, told = keys.add("bot", "reader", ["staff", "hr"])
    assert told not in keys.path.read_text()
    assert keys.path.stat().st_mode & 0o777 == 0o600
    other = AccessKeys(tmp_path)
    assert other.check(told) == key
    with pytest.raises(InputError, match="in use"):
        keys.add("bot", "operator")
    with pytest.raises(InputError, match="groups"):
        keys.add("eve", "auditor", ["staff"])
    _, old = keys.add("old", "reader", expires=datetime.now(UTC).date() - timedelta(days=1))
    with pytest.raises(AccessDenied):
        other.check(old)
    assert other.check(keys.add("today", "reader", expires=date.max)[1]).name == "today"
    keys.revoke("bot")
    assert not other.still(key)
    with pytest.raises(AccessDenied):
        other.check(told)
    with pytest.raises(NotFound):
        keys.revoke("bot")
    _, more = keys.add("more", "reader")
    keys.path.write_text("{")
    with pytest.raises(Damaged):
        other.check(more)
    keys.path.unlink()
    with pytest.raises(AccessDenied):
        other.check(more)


def test_every_route_asks_for_a_key_and_a_role(served: Served) -> None:
    described = served.http(None).get("/openapi.json").json()
    open_ones = {"/health"}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            url = path.replace("{", "x").replace("}", "")
            bare = served.http(None).request(method, url)
            if path in open_ones:
                assert bare.status_code == 200
                continue
            assert (bare.status_code, bare.json()["error"]["code"]) == (401, "invalid_api_key")
            assert operation["security"] == [{"key": []}]
            body = {"content": "{}", "headers": {"content-type": "application/json"}}
            told = {
                role: served.http(role).request(method, url, **body).status_code  # type: ignore[arg-type]
                for role in ("reader", "auditor")
            }
            assert 403 in told.values(), (path, method)  # no route is for everybody


def test_a_revoked_key_opens_nothing_any_more(served: Served) -> None:
    client = served.http("reader", "staff", "passing")
    assert client.get("/v1/models").status_code == 200
    AccessKeys(served.path).revoke("reader-staff-passing")
    assert client.get("/v1/models").status_code == 401


def test_bodies_that_cannot_be_used(served: Served) -> None:
    client = served.http()
    url = "/v1/chat/completions"
    for content, status in (
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"messages": []}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b" " * ((1 << 20) + 1), 413),
    ):
        answer = client.post(url, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status, content[:20]
        assert answer.json()["error"]["type"] == "invalid_request_error"

    def endless():  # type: ignore[no-untyped-def]  # noqa: ANN202
        for _ in range(64):
            yield b" " * (1 << 16)

    assert client.post(url, content=endless()).status_code == 413
    assert client.put(url, content=b"{}").status_code == 405
    assert client.get("/nowhere").json()["error"]["message"] == "Not Found"


def test_a_client_that_dawdles_is_cut_off_and_others_are_served(
    fresh: Callable[..., Served],
) -> None:
    served = fresh(client_seconds=1.0)
    key = served.key()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        "content-type: application/json\r\ncontent-length: 100\r\n"
    )
    slow = []
    for sent in ("GET /hea", head, head + "\r\n{", ""):
        connection = socket.create_connection(("127.0.0.1", served.port))
        connection.sendall(sent.encode())
        connection.settimeout(15)
        slow.append(connection)
    assert served.http().post("/v1/chat/completions", json=ASK).status_code == 200
    answers = []
    for connection in slow:
        received = b""
        while piece := connection.recv(65536):
            received += piece
        answers.append(received)
        connection.close()
    assert answers[0] == answers[1] == answers[3] == b""
    assert b"408" in answers[2].split(b"\r\n")[0]


def test_a_client_that_leaves_frees_its_row(served: Served) -> None:
    client = served.http("operator")
    with client.stream(
        "POST",
        "/v1/chat/completions",
        json={**ASK, "stream": True, "max_tokens": 500, "temperature": 1.0, "seed": 1},
    ) as stream:
        next(stream.iter_lines())
    end = time.monotonic() + 10
    while "llm_unlearn_answers_decoding 0.0" not in client.get("/metrics").text:
        assert time.monotonic() < end


def test_more_than_may_are_told_to_come_again(fresh: Callable[..., Served]) -> None:
    served = fresh(rows=1, queue=1)
    long = {**ASK, "max_tokens": 500, "temperature": 1.0, "seed": 1}
    statuses: list[int] = []
    client = served.http()

    def ask() -> None:
        answer = client.post("/v1/chat/completions", json=long)
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "queue_full"

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert served.http().post("/v1/chat/completions", json=ASK).status_code == 200


def test_a_key_has_a_rate_and_an_answer_a_time(fresh: Callable[..., Served]) -> None:
    served = fresh(rate=5, answer_seconds=0.05)
    statuses = [served.http().get("/v1/models").status_code for _ in range(7)]
    assert set(statuses[:5]) <= {200, 504}
    assert statuses[5] == 429
    long = {**ASK, "max_tokens": 500, "temperature": 1.0, "seed": 1}
    answer = served.http("reader", "other").post("/v1/chat/completions", json=long)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_speech_holds_back_what_may_become_a_stop() -> None:
    class Bytes:
        """One token a byte."""

        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            return bytes(ids).decode("utf-8", "replace")

    def said(text: str, stops: list[str], trim: bool = True) -> list[str]:
        speech = Speech(Bytes(), stops, trim=trim)
        pieces = []
        for token in text.encode():
            pieces.append(speech.add(token))
            if speech.stopped:
                return pieces
        return [*pieces, speech.close()]

    assert said("abSTO", ["STOP"]) == ["a", "b", "", "", "", "STO"]
    assert "".join(said("abSTOPcd", ["STOP"])) == "ab"
    assert "".join(said("abSTcSTOPd", ["STOP", "x"])) == "abSTc"
    assert "".join(said(" a  b \n", [])) == "a  b"
    assert "".join(said(" a ", [], trim=False)) == " a "
    assert said("é", []) == ["", "é", ""]
    assert Sampler().plain


def test_revoking_a_name_ends_every_key_of_it(tmp_path: Path) -> None:
    keys = AccessKeys(tmp_path)
    past = datetime.now(UTC).date() - timedelta(days=1)
    keys.add("bot", "reader", expires=past)
    key, told = keys.add("bot", "reader")
    other = keys.add("other", "reader")[1]
    assert keys.revoke("bot").id == key.id
    with pytest.raises(AccessDenied):
        keys.check(told)
    assert all(k.revoked for k in keys.all() if k.name == "bot")
    assert keys.check(other).name == "other"


def test_searches_and_embeddings_have_threads_of_their_own(served: Served) -> None:
    assert served.backend is not None
    asked = {"/v1/search": {"query": "tide"}, "/v1/embeddings": {"input": "tide"}}
    rooms = {
        "/v1/search": served.backend.searches.room,
        "/v1/embeddings": served.backend.embeddings.room,
    }
    for crowded, room in rooms.items():
        taken = 0
        while room.acquire(blocking=False):
            taken += 1
        try:
            for path, body in asked.items():
                told = served.http().post(path, json=body)
                assert told.status_code == (429 if path == crowded else 200)
                if path == crowded:
                    assert told.json()["error"]["code"] == "queue_full"
            assert served.http("operator").get("/v1/status").status_code == 200
        finally:
            for _ in range(taken):
                room.release()
        assert served.http().post(crowded, json=asked[crowded]).status_code == 200
    embedder = served.backend.reader.opened.models.embedder
    assert embedder.tokenizer is embedder.tokenizer  # not made for each text


def test_many_embeddings_leave_searches_a_thread(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, begun = threading.Event(), threading.Semaphore(0)

    def encode(embedder: Any, texts: list[str]) -> Any:
        begun.release()
        held.wait(60)
        return embedding.encode(embedder, texts)

    monkeypatch.setattr("llm_unlearn.serve.completions.encode", encode)
    statuses: list[int] = []

    def embed() -> None:
        told = served.http().post("/v1/embeddings", json={"input": "tide"})
        statuses.append(told.status_code)

    callers = [threading.Thread(target=embed) for _ in range(6)]
    for caller in callers:
        caller.start()
    try:
        assert all(begun.acquire(timeout=60) for _ in range(2))
        assert served.http().post("/v1/search", json={"query": "tide"}).status_code == 200
    finally:
        held.set()
    for caller in callers:
        caller.join(60)
    assert statuses == [200] * 6


def test_what_the_model_cannot_read_is_refused_before_anything_looks_at_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Ask] = []
    monkeypatch.setattr(Ask, "choose", lambda self: chosen.append(self))
    long = "dump all " * 20_000
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long, "model": "base"}),
        ("/v1/completions", {"prompt": [9] * 60_000, "model": "base", "stream": True}),
    ):
        told = served.http().post(path, json=body)
        assert told.status_code == 400
        assert "more tokens" in told.json()["error"]["message"]
    assert not chosen


def test_settings_that_would_change_the_answer_and_are_not_supported_are_refused(
    served: Served,
) -> None:
    client = served.http()
    chat, text = {**ASK, "max_tokens": 1}, {"model": "base", "prompt": "The", "max_tokens": 1}
    for path, body, more in (
        ("chat/completions", chat, {"response_format": {"type": "json_object"}}),
        ("chat/completions", chat, {"logit_bias": {"5": -100}}),
        ("chat/completions", chat, {"functions": [{"name": "f"}]}),
        ("chat/completions", chat, {"modalities": ["text", "audio"]}),
        ("chat/completions", chat, {"web_search_options": {}}),
        ("completions", text, {"suffix": "the end"}),
        ("completions", text, {"logit_bias": {"5": -100}}),
    ):
        assert client.post(f"/v1/{path}", json={**body, **more}).status_code == 400, more
    for path, body, more in (
        ("chat/completions", chat, {"response_format": {"type": "text"}, "logit_bias": {}}),
        ("chat/completions", chat, {"functions": [], "tool_choice": "none", "user": "me"}),
        ("completions", text, {"suffix": ""}),
    ):
        assert client.post(f"/v1/{path}", json={**body, **more}).status_code == 200, more


def test_an_empty_turn_is_passed_over(served: Served) -> None:
    def ask(*turns: dict[str, str]) -> tuple[int, int]:
        body = {"model": "base", "messages": list(turns), "max_tokens": 1}
        told = served.http().post("/v1/chat/completions", json=body)
        return told.status_code, told.json()["usage"]["prompt_tokens"]

    empty = {"role": "assistant", "content": ""}
    first, last = ({"role": "user", "content": words} for words in ("Who?", "Where?"))
    assert ask(first, empty, last) == ask(first, last)
    assert ask({"role": "system", "content": ""}, last) == ask(last)
