"""Responses whose words are taken at the moment they can be sent, and callers who leave.

Guarantees: words are taken from a job only when the connection has handed everything before them to the
operating system, and go to it in the same step of the event loop: what was taken down while a client was
slow is not sent to it afterwards. What the operating system holds for a slow client is out of reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from starlette.responses import Response

from llm_unlearn.errors import UnlearnError
from llm_unlearn.serve.failures import answer

STREAM: Final = "text/event-stream; charset=utf-8"
JSON: Final = "application/json"


def lines(*events: str) -> bytes:
    """Server-sent events with these data, each without a line break."""
    return "".join(f"data: {event}\n\n" for event in events).encode()


class Taken(Response):
    """A response made of items that are taken one by one; it begins with the first.

    An error before the first is answered with its own status. When the caller leaves, it ends.

    Args:
        items: what is sent; waits for nothing else between taking and giving.
        released: called once, however it ends.
    """

    def __init__(
        self, items: AsyncIterator[bytes], released: Callable[[], None], media_type: str = STREAM
    ) -> None:
        super().__init__(media_type=media_type)
        self._items = items
        self._released = released

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send what comes, as it comes."""
        task = asyncio.current_task()
        assert task is not None
        left = False

        async def leaving() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        gone = asyncio.ensure_future(leaving())
        begun = False
        try:
            async for item in self._items:
                if not begun:
                    begun = True
                    kind = (self.media_type or JSON).encode()
                    headers = [(b"content-type", kind), (b"x-accel-buffering", b"no")]
                    if kind == JSON.encode():
                        headers[1:] = [(b"content-length", str(len(item)).encode())]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": item, "more_body": True})
                # nothing is written by this; it waits until the connection has let go of the item
                await send({"type": "http.response.body", "body": b"", "more_body": True})
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
