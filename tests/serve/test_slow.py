"""Clients who take nothing: what was removed meanwhile is not sent to them when they do."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from served import Served
from small import stored


def _request(method: str, path: str, key: str = "", body: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return f"{head}{length}\r\n{body}".encode()


def _stuffed(served: Served) -> tuple[socket.socket, int]:
    """A connection whose client took so few answers that some of the last is still here; how many."""
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.settimeout(60)
    name = connection.getsockname()
    assert served.server is not None
    last: Any = None
    for number in range(1, 2000):
        connection.sendall(_request("GET", "/openapi.json"))
        while True:
            time.sleep(0.002)
            own = [c for c in served.server.server_state.connections if _named(c, name)]
            cycle = own[0].cycle if own else None
            if cycle is not None and cycle is not last and cycle.response_complete:
                last = cycle
                break
        time.sleep(0.05)
        if own[0].transport.get_write_buffer_size():
            time.sleep(0.5)
            if own[0].transport.get_write_buffer_size():
                return connection, number
    raise AssertionError("the client was never slow")


def _named(connection: Any, name: object) -> bool:
    return getattr(connection, "client", None) == name


@pytest.fixture(scope="module")
def slow(fresh: Callable[..., Served]) -> Served:
    return fresh(client_seconds=120.0, rate=100_000)


@pytest.mark.parametrize(
    ("number", "subject", "route"),
    [
        (0, "work", "search"),
        (2, "keep-0", "document"),
        (3, "keep-1", "chat"),
        (4, "keep-2", "stream"),
    ],
)
def test_what_goes_while_a_client_takes_nothing_is_not_sent(
    slow: Served, number: int, subject: str, route: str
) -> None:
    document = stored(number, subject)
    words = (document.text or "")[-40:]
    key, operator = slow.key("reader", "staff"), slow.http("operator")
    chat = (
        f'{{"model": "workspace", "max_tokens": 2, "stream": {str(route == "stream").lower()}, '
        f'"messages": [{{"role": "user", "content": "{document.text}"}}]}}'
    )
    asked = {
        "search": _request("POST", "/v1/search", key, f'{{"query": "{document.text}", "k": 100}}'),
        "document": _request("GET", f"/v1/documents/{document.id}", key),
        "chat": _request("POST", "/v1/chat/completions", key, chat),
        "stream": _request("POST", "/v1/chat/completions", key, chat),
    }[route]
    connection, before = _stuffed(slow)
    connection.sendall(asked)
    time.sleep(2)  # whatever begins now is made, and waits
    told = operator.post("/v1/takedowns", json={"subject": subject})
    assert told.status_code == 201, told.text
    received = b""
    try:
        while piece := connection.recv(1 << 20):
            received += piece
            if received.count(b"HTTP/1.1 ") > before:
                connection.settimeout(3)  # the last answer has begun
    except TimeoutError:
        pass
    connection.close()
    assert b'"openapi"' in received
    last = received.rsplit(b"HTTP/1.1 ", 1)[1]
    assert b"openapi" not in last  # the request was answered in the end
    assert words.encode() not in last
