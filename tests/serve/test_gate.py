"""What every request passes: who takes up room, and for whom some is kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llm_unlearn.config_serving import ServingConfig
from llm_unlearn.serve.access import AccessKeys
from llm_unlearn.serve.gate import Gate
from llm_unlearn.serve.metrics import Metrics


class Room:
    """A gate before an application that answers when it is told to."""

    def __init__(self, workspace: Path) -> None:
        self.keys = AccessKeys(workspace)
        self.told = {
            name: self.keys.add(name, role)[1]  # type: ignore[arg-type]
            for name, role in (("one", "reader"), ("two", "reader"), ("boss", "operator"))
        }
        self.leave = asyncio.Event()
        self.inside = 0
        config = ServingConfig(in_flight=8, max_body=1024)
        self.gate = Gate(self._app, self.keys, config, Metrics())

    async def _app(self, _scope: Any, _receive: Any, send: Any) -> None:
        self.inside += 1
        await self.leave.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, name: str = "", path: str = "/v1/models", body: bytes = b"") -> Any:
        headers = [(b"authorization", b"Bearer " + self.told[name].encode())] if name else []
        scope = {"type": "http", "path": path, "method": "POST", "headers": headers, "state": {}}
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.gate(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    async def status(self, name: str = "", path: str = "/v1/models", body: bytes = b"") -> Any:
        """Its status; 0 while it is under way."""
        task = asyncio.ensure_future(self.ask(name, path, body))
        for _ in range(5):
            await asyncio.sleep(0)
        return (await task)[0] if task.done() else 0


def test_nobody_without_a_key_takes_up_room(tmp_path: Path) -> None:
    async def run() -> None:
        room = Room(tmp_path)
        assert {await room.status(path="/health") for _ in range(20)} == {0}
        assert await room.status("one") == 0
        assert await room.status(path="/health", body=b"x") == 413
        room.leave.set()

    asyncio.run(run())


def test_readers_leave_room_for_one_another_and_for_operators(tmp_path: Path) -> None:
    async def run() -> None:
        room = Room(tmp_path)
        assert [await room.status("one") for _ in range(7)] == [0] * 6 + [429]
        assert [await room.status("two") for _ in range(2)] == [0, 429]
        assert [await room.status("boss") for _ in range(2)] == [0, 429]
        assert room.inside == 8
        room.leave.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert await room.status("one") == 200

    asyncio.run(run())


@pytest.mark.parametrize("name", ["one", "boss"])
def test_a_damaged_file_of_keys_is_told_without_its_path(tmp_path: Path, name: str) -> None:
    async def run() -> None:
        room = Room(tmp_path)
        room.keys.path.write_text("{")
        status, body = await room.ask(name)
        assert (status, json.loads(body)["error"]["code"]) == (500, "damaged")
        assert str(tmp_path) not in body.decode()
        assert room.inside == 0

    asyncio.run(run())
