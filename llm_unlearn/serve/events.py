"""Responses whose words are taken at the moment they can be sent, and callers who leave.

Guarantees: words are taken only when the connection has handed everything before them to the operating
system, answers to earlier requests too, and go to it in the same step of the event loop. If it takes only
a part, or none, and the workspace changes before it took the rest, the connection is cut off: what was
taken down while a client was slow is not sent to it afterwards. What the operating system holds for a
slow client is out of reach.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from pydantic import BaseModel
from starlette.responses import Response

from llm_unlearn.errors import UnlearnError
from llm_unlearn.serve.failures import answer
from llm_unlearn.serve.room import Busy

STREAM: Final = "text/event-stream; charset=utf-8"
JSON: Final = "application/json"
_TRIES: Final = 4
_LOOK: Final = 0.05  # seconds between two looks at the workspace while a client takes nothing


class Line:
    """One client's connection: what was written to it and not yet taken.

    Args:
        drain: waits until nothing is left.
    """

    def __init__(self, transport: asyncio.Transport, drain: Callable[[], Awaitable[None]]) -> None:
        self._transport = transport
        self.drain = drain

    async def over(self, still: Callable[[], bool]) -> bool:
        """Wait until nothing is left; False, and the client is cut off, if `still` ends before."""
        waited = False
        while True:
            left = self._transport.get_write_buffer_size()
            if not left and not waited:
                return True
            if not still():
                self._transport.abort()
                await self.drain()
                return False
            if not left:
                return True
            waited = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self.drain()


def lines(*events: str) -> bytes:
    """Server-sent events with these data, each without a line break."""
    return "".join(f"data: {event}\n\n" for event in events).encode()


class Taken(Response):
    """A response made of items that are taken one by one; it begins with the first.

    An error before the first is answered with its own status. When the caller leaves, it ends.

    Args:
        items: what is sent; waits for nothing else between taking and giving.
        released: called once, however it ends.
        commits: another number after any commit to the workspace.
    """

    def __init__(
        self,
        items: AsyncIterator[bytes],
        released: Callable[[], None],
        commits: Callable[[], int],
        media_type: str = STREAM,
    ) -> None:
        super().__init__(media_type=media_type)
        self._items = items
        self._released = released
        self._commits = commits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send what comes, as it comes."""
        task = asyncio.current_task()
        assert task is not None
        left = False
        line: Line = scope["state"]["line"]

        async def leaving() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        gone = asyncio.ensure_future(leaving())
        begun = False
        try:
            await line.drain()
            async for item in self._items:
                number = self._commits()

                def still(number: int = number) -> bool:
                    return self._commits() == number

                if not begun:
                    begun = True
                    kind = (self.media_type or JSON).encode()
                    headers = [(b"content-type", kind), (b"x-accel-buffering", b"no")]
                    if kind == JSON.encode():
                        headers[1:] = [(b"content-length", str(len(item)).encode())]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    if not await line.over(still):
                        return
                await send({"type": "http.response.body", "body": item, "more_body": True})
                if not await line.over(still):
                    return
            await send({"type": "http.response.body", "body": b""})
        except UnlearnError as error:
            if begun:
                raise
            await answer(error)(scope, receive, send)
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
        finally:
            gone.cancel()
            self._released()


def looked(commits: Callable[[], int], look: Callable[[], Awaitable[BaseModel]]) -> Taken:
    """A JSON answer with text of documents, looked up again if the workspace changes meanwhile."""

    async def items() -> AsyncIterator[bytes]:
        for _ in range(_TRIES):
            number = commits()
            told = (await look()).model_dump_json().encode()
            if commits() == number:
                yield told
                return
        raise Busy("The workspace keeps changing while this is answered.", "Ask again in a moment.")

    return Taken(items(), lambda: None, commits, JSON)
