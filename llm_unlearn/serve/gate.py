"""What every request passes before any route: key, rate, size, time, room; and what is logged of it.

Guarantees: no request begins before its client has taken what earlier ones were answered. Without a live
API key nothing but `PUBLIC` is reached, before a byte of the body is read, and what is public takes none. A
body is read whole, within its limits, before it takes up room. A request with a key counts as under way
until its last byte is handed over; keys that are no operator's leave room for those. One line is logged
for each: route, status, time, the key's id. No path (it may hold the id of a document), no question, no
text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from llm_unlearn.config_serving import ServingConfig
from llm_unlearn.errors import AccessDenied, Damaged, UnlearnError
from llm_unlearn.serve.access import AccessKeys, Key
from llm_unlearn.serve.events import Line
from llm_unlearn.serve.failures import Slow, TooLarge, TooMany, Unknown, answer
from llm_unlearn.serve.metrics import Metrics

PUBLIC: Final = frozenset({"/health", "/openapi.json", "/", "/console.js", "/console.css"})
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
_log = logging.getLogger("llm_unlearn.serve")
_HEADERS: Final = (
    (b"cache-control", b"no-store"),  # a cache on the way would outlive a takedown
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass
class _Bucket:
    """Requests that a key has left; they come back evenly."""

    left: float
    seen: float


class Gate:
    """The outermost part of the application."""

    def __init__(
        self, app: Any, access: AccessKeys, config: ServingConfig, metrics: Metrics
    ) -> None:
        self._app = app
        self._access = access
        self._config = config
        self._metrics = metrics
        self._buckets: dict[str, _Bucket] = {}
        self._by_key: Counter[str] = Counter()  # requests under way
        self._others = 0  # of them, of keys that are no operator's

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line: Line | None = scope.get("state", {}).get("line")
        if line is not None:
            await line.drain()
        began = time.monotonic()
        status = 0
        key: Key | None = None

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        inside = False
        try:
            if scope["path"] not in PUBLIC:
                key = self._key(scope)
                self._spend(key)
            scope.setdefault("state", {})["key"] = key
            body = await self._body(scope, receive, 0 if key is None else self._config.max_body)
            if body is None:
                return
            if key is not None:
                self._enter(key)
                inside = True
            await self._app(scope, _again(body, receive), tell)
        except UnlearnError as error:
            if status:
                raise
            await answer(error)(scope, receive, tell)
        finally:
            if inside and key is not None:
                self._leave(key)
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.monotonic() - began
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            entry = {
                "route": route,
                "method": method,
                "status": status,
                "seconds": round(seconds, 4),
                "key": key.id if key else None,
            }
            _log.info("%s", json.dumps(entry))

    def _key(self, scope: Any) -> Key:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        kind, _, told = (given[0] if len(given) == 1 else b"").partition(b" ")
        if kind.lower() != b"bearer" or not told.strip():
            raise Unknown("An API key is needed.", "Send the header 'Authorization: Bearer KEY'.")
        try:
            return self._access.check(told.strip().decode("ascii", "replace"))
        except AccessDenied as error:
            raise Unknown(error.problem, error.remedy) from None
        except Damaged:  # its words name a path, and who asks has no key yet
            raise Damaged("The API keys cannot be read.", "Ask the operator.") from None

    def _enter(self, key: Key) -> None:
        """Count a request as under way.

        Raises:
            TooMany: there is no room for one of this key.
        """
        most, other = self._config.in_flight, key.role != "operator"
        full = self._by_key.total() >= most or (
            # an eighth is the operators', and another no single key's
            other and (self._others >= most - most // 8 or self._by_key[key.id] >= most - most // 4)
        )
        if full:
            raise TooMany("Too many requests are under way.", "Ask again in a moment.")
        self._by_key[key.id] += 1
        self._others += other
        self._metrics.under_way.inc()

    def _leave(self, key: Key) -> None:
        self._by_key[key.id] -= 1
        if not self._by_key[key.id]:
            del self._by_key[key.id]
        self._others -= key.role != "operator"
        self._metrics.under_way.dec()

    def _spend(self, key: Key) -> None:
        now, most = time.monotonic(), float(self._config.rate)
        bucket = self._buckets.setdefault(key.id, _Bucket(most, now))
        bucket.left = min(most, bucket.left + (now - bucket.seen) * most / 60)
        bucket.seen = now
        if bucket.left < 1:
            raise TooMany(f"More than {self._config.rate} requests a minute.", "Ask more slowly.")
        bucket.left -= 1

    async def _body(self, scope: Any, receive: Receive, most: int) -> bytes | None:
        """The whole body of at most so many bytes; None if the client left before its end."""
        declared = [value for name, value in scope["headers"] if name == b"content-length"]
        large = TooLarge(f"The body is longer than {most} bytes.", "Send it in parts.")
        if not most:
            large = TooLarge("This address takes no body.", "Leave it out.")
        if declared and int(declared[0]) > most:
            raise large
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.client_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Slow("The body did not come in time.", "Send it at once.") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives the body once, and then what comes after it."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving
