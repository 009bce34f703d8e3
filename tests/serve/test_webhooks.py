"""Webhooks tell every state of every takedown, however fast it is passed and whoever fails meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.serve.webhooks import FILE, State, Webhooks
from llm_unlearn.takedown.journal import Case, Filed, Journal
from llm_unlearn.takedown.journal import State as Name

SECRET = "a secret of more than twenty-four bytes"
ALL: tuple[Name, ...] = ("approved", "fenced", "deleted", "disposed", "retrained")


class _Receiver:
    """Takes what it is told, in order, unless it is failing."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, str, str | None]] = []
        self.ids: list[str] = []
        self.fails = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                data = body["data"]
                if outer.fails:
                    outer.fails -= 1
                    self.send_response(503)
                else:
                    assert body["type"] == f"takedown.{data['state']}"
                    outer.taken.append((data["number"], data["state"], data["receipt"]))
                    outer.ids.append(self.headers["webhook-id"])
                    self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def of(self, number: int) -> list[str]:
        return [state for one, state, _ in self.taken if one == number]


@pytest.fixture
def receivers() -> Iterator[tuple[_Receiver, _Receiver]]:
    made = _Receiver(), _Receiver()
    threads = [threading.Thread(target=one.server.serve_forever, args=(0.02,)) for one in made]
    for thread in threads:
        thread.start()
    yield made
    for one, thread in zip(made, threads, strict=True):
        one.server.shutdown()
        thread.join()
        one.server.server_close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    keyring = Keyring.create(tmp_path / "keys")
    with Database.open(tmp_path / "workspace.db", create=True) as database:
        Journal.create_table(database)
        yield Journal(database, keyring)
    keyring.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_unlearn.serve.webhooks._LOOK", 0.02)
    monkeypatch.setattr("llm_unlearn.serve.webhooks._FIRST_WAIT", 0.02)


def _case(name: str) -> Case:
    return Case(
        kind="internal",
        request_id=name,
        selectors={},
        salt="00",
        handles=[],
        received="2026-01-01T00:00:00Z",
        acknowledged="2026-01-01T00:00:00Z",
    )


def _drive(journal: Journal, name: str, states: Sequence[Name] = ALL) -> Filed:
    """A takedown through its states, as fast as they can be written."""
    case = _case(name)
    filed = journal.open_case(case)
    for state in states:
        filed = journal.advance(filed, filed.state, case)  # looked at: no new state
        filed = journal.advance(filed, state, case)
    return filed


def _serve(
    folder: Path, journal: Journal, urls: Sequence[str], until: Callable[[], bool] | None = None
) -> None:
    """A server's webhooks, from its start until something happened, or all is told and written down."""

    def settled() -> bool:
        try:
            told = json.loads((folder / FILE).read_text())
        except (FileNotFoundError, ValueError):
            return False
        events = [told.get(url) for url in urls] if isinstance(told, dict) else [None]
        last = journal.reached()[-1].event
        return all(event == last for event in events)

    async def run() -> None:
        def states(after: str | None) -> list[State]:
            return [State(*one) for one in journal.reached(after)]

        task = asyncio.create_task(Webhooks(folder, urls, SECRET, states).run())
        try:
            async with asyncio.timeout(30):
                while not (until or settled)():
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_many_urls_that_never_answer_hold_no_other_up(
    journal: Journal,
    receivers: tuple[_Receiver, _Receiver],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More of them than asyncio has threads for everybody (32 at most), each waited for all the time."""
    monkeypatch.setattr("llm_unlearn.serve.webhooks._PATIENCE", 40.0)
    _drive(journal, "one")
    good = receivers[0]
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        urls = [f"http://127.0.0.1:{port}/{n}" for n in range(40)]
        _serve(tmp_path, journal, [*urls, good.url], lambda: len(good.taken) == 1 + len(ALL))
    assert good.of(1) == ["received", *ALL]


def test_a_url_that_answers_nonsense_holds_no_other_up(
    journal: Journal, receivers: tuple[_Receiver, _Receiver], tmp_path: Path
) -> None:
    """What is no HTTP is told by an exception that is neither OSError nor ValueError."""
    good = receivers[0]
    _drive(journal, "one")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as rude:

        def answer() -> None:
            while True:
                try:
                    connection, _ = rude.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"what do you want?\r\n\r\n")
                    told.append(1)

        told: list[int] = []
        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{rude.getsockname()[1]}/"

        def settled() -> bool:
            return len(told) > 2 and len(good.taken) == 1 + len(ALL)

        _serve(tmp_path, journal, [url, good.url], settled)
        rude.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert good.of(1) == ["received", *ALL]


def test_a_number_that_an_earlier_version_gave_is_not_given_again(journal: Journal) -> None:
    first = _drive(journal, "one")
    with journal._database.transaction() as connection:  # as a version does that keeps no record
        connection.execute(
            "INSERT INTO takedowns VALUES (?, ?, 'received', NULL, NULL, NULL)",
            (b"another", first.number + 1),
        )
    assert journal.open_case(_case("three")).number == first.number + 2


def test_every_state_is_told_in_order_once_to_each(
    tmp_path: Path, journal: Journal, receivers: tuple[_Receiver, _Receiver]
) -> None:
    one, other = receivers
    first = _drive(journal, "a")
    _drive(journal, "b", ["refused"])
    journal.close(first, "00000001.json")
    urls = [one.url, other.url]
    other.fails = 3
    _serve(tmp_path, journal, urls)
    expected = [(1, state, None) for state in ("received", *ALL)]
    expected += [(2, "received", None), (2, "refused", None), (1, "receipted", "00000001.json")]
    assert one.taken == other.taken == expected
    assert len(set(one.ids)) == 9

    # after a restart only what came meanwhile is told; going back is a state like any other
    journal.end(first, "restored")
    journal.end(first, "restored")
    second = next(row for row in journal.filed() if row.number == 2)
    journal.end(second, "withdrawn")
    _serve(tmp_path, journal, urls)
    expected += [(1, "restored", "00000001.json"), (2, "withdrawn", None)]
    assert one.taken == other.taken == expected


def test_a_server_that_ends_while_the_receiver_fails(
    tmp_path: Path, journal: Journal, receivers: tuple[_Receiver, _Receiver]
) -> None:
    one, other = receivers
    one.fails = 10**6
    _drive(journal, "a", ["approved"])
    urls = [one.url, other.url]
    _serve(tmp_path, journal, urls, lambda: len(other.taken) == 2 and one.fails < 10**6)
    assert one.taken == []  # it holds nobody else up
    one.fails = 0
    _serve(tmp_path, journal, urls)
    # what was taken right before the end may not have been written down yet, and is told twice
    assert one.of(1) == list(dict.fromkeys(other.of(1))) == ["received", "approved"]


def test_what_was_discarded_is_told_and_its_number_stays_its_own(
    tmp_path: Path, journal: Journal, receivers: tuple[_Receiver, _Receiver]
) -> None:
    """Else the next takedown's states would pass for told, and its receiver for done with it."""
    one, _ = receivers
    journal.discard(_drive(journal, "a", []))
    assert journal.filed() == []
    assert _drive(journal, "a", ["approved"]).number == 2
    _serve(tmp_path, journal, [one.url])
    assert one.of(1) == ["received", "withdrawn"]
    assert one.of(2) == ["received", "approved"]


def test_a_workspace_and_a_file_of_an_earlier_version(
    tmp_path: Path, journal: Journal, receivers: tuple[_Receiver, _Receiver]
) -> None:
    """Its journal kept the last state only, and its file the last one told of each takedown."""
    one, _ = receivers
    database = journal._database
    done = _drive(journal, "a")
    journal.close(done, "00000001.json")
    moved = _drive(journal, "b", ["approved"])
    _drive(journal, "c", [])
    with database.transaction() as connection:
        connection.execute("DROP TABLE reached")
    told = {"1": "receipted", "2": "received", "3": "received"}
    (tmp_path / FILE).write_text(json.dumps({one.url: told}))
    _serve(tmp_path, journal, [one.url])
    # from the first that was not told on: the third one's is told again
    assert one.taken == [(2, "approved", None), (3, "received", None)]
    journal.advance(moved, "fenced", _case("b"))  # makes the record
    _serve(tmp_path, journal, [one.url])
    assert one.taken[2:] == [(2, "fenced", None)]


@pytest.mark.parametrize("content", ["{", "[]", '{"URL": 3}', '{"URL": "of another journal"}'])
def test_where_it_cannot_be_known_what_was_told_all_is_told(
    content: str, tmp_path: Path, journal: Journal, receivers: tuple[_Receiver, _Receiver]
) -> None:
    one, _ = receivers
    (tmp_path / FILE).write_text(content.replace("URL", one.url))
    _drive(journal, "a", ["approved"])
    _serve(tmp_path, journal, [one.url])
    assert one.of(1) == ["received", "approved"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "a.example/hook",
        "https:///hook",
        "http://a.example/no such path",
        "http://a.example/hook\n",
        "http://a.example:port/",
        "http://a.example:0/",
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no http"):
        Webhooks(tmp_path, ["https://a.example/hook", url], SECRET, lambda _: [])


def test_a_secret_as_the_specification_writes_it() -> None:
    """The example of the specification's libraries; worked with HMAC-SHA256 by hand."""
    from llm_unlearn.serve.webhooks import key_of, signature

    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert key == base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    told = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert told == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert key_of(SECRET) == SECRET.encode()


@pytest.mark.parametrize("secret", ["whsec_" + "not base64!" * 9, "whsec_c2hvcnQ="])
def test_a_secret_that_stands_for_no_key_is_refused(tmp_path: Path, secret: str) -> None:
    with pytest.raises(InputError, match=r"base64|24 bytes"):
        Webhooks(tmp_path, ["https://a.example/hook"], secret, lambda _: [])
