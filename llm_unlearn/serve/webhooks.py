"""Webhooks: every state of every takedown, told to servers elsewhere, signed.

    POST URL
    webhook-id: WORKSPACE.NUMBER.STATE
    webhook-timestamp: seconds since 1970
    webhook-signature: v1,BASE64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY"))

    {"type": "takedown.fenced", "timestamp": "...",
     "data": {"number": 3, "state": "fenced", "receipt": null}}

as in the Standard Webhooks specification, so its libraries verify them. A secret that begins with
`whsec_` is base64 of the key after that; any other is the key itself (`key_of`). The body names no
document, no subject and nobody; a receiver asks for what it needs with a key of its own.

Guarantees: every state that the journal records, by whatever process and however fast the next one comes,
is told at least once to each URL, in the order in which they were reached, until the URL answers 2xx. How
far each URL was told is kept in `WS/webhooks.json`, so states that came while the server was down are told
when it is up again, and a URL that is new is told everything from the first takedown on. A state that a URL
took just before a kill is told to it again, under the same `webhook-id`. A URL that fails is told the same
state again after 1, 2, 4 ... 60 seconds, and holds no other URL up. `timestamp` is when it is told.

A takedown that was filed and that nothing fell under, or that was not meant, is told as `received`, then
`withdrawn`; one that names what no document has is not filed, and not told.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.client
import json
import logging
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from llm_unlearn.errors import InputError, UnlearnError
from llm_unlearn.files import write_atomic

FILE: Final = "webhooks.json"
_PREFIX: Final = "whsec_"
_LOOK = 0.5
_FIRST_WAIT = 1.0
_PATIENCE = 10.0
_log = logging.getLogger("llm_unlearn.serve")


@dataclass(frozen=True)
class State:
    """A state that one takedown reached.

    Attributes:
        event: names it among all.
    """

    number: int
    state: str
    receipt: str | None
    event: str


def key_of(secret: str) -> bytes:
    """The key that a secret stands for.

    Raises:
        InputError: it begins with `whsec_`, and what follows is not base64.

    >>> key_of("whsec_c2VjcmV0"), key_of("secret")
    (b'secret', b'secret')
    """
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:
        raise InputError(
            f"The webhooks' secret begins with {_PREFIX}, and what follows is not base64.",
            "Give it as it was made, or without that beginning.",
        ) from None


def signature(secret: bytes, name: str, moment: int, body: bytes) -> str:
    """The header that proves who sent a body."""
    signed = b".".join((name.encode(), str(moment).encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def verify(secret: bytes, headers: dict[str, str], body: bytes, *, seconds: float = 300) -> bool:
    """Whether a webhook is from whoever holds the secret, and not old; for receivers in Python.

    Args:
        secret: the key, as `key_of` gives it.
    """
    try:
        moment = int(headers["webhook-timestamp"])
        right = signature(secret, headers["webhook-id"], moment, body)
    except (KeyError, ValueError):
        return False
    return abs(time.time() - moment) <= seconds and hmac.compare_digest(
        right.encode(), headers.get("webhook-signature", "").encode(errors="replace")
    )


class Webhooks:
    """Tells the states of one workspace's takedowns.

    Args:
        urls: http or https.
        secret: as `key_of` takes it, of at least 24 bytes; receivers hold the same.
        states: the states reached after the one of this `event`, in order; all, where there is none.

    Raises:
        InputError: a URL or the secret is unusable.
    """

    def __init__(
        self,
        workspace: Path,
        urls: Sequence[str],
        secret: str,
        states: Callable[[str | None], list[State]],
    ) -> None:
        for url in urls:
            if not _askable(url):
                raise InputError(f"{url!r} is no http or https address.")
        self._secret = key_of(secret) if urls else b""
        if urls and len(self._secret) < 24:
            raise InputError(
                "The webhooks' secret stands for fewer than 24 bytes.",
                "Set LLM_UNLEARN_WEBHOOK_SECRET to a long random one.",
            )
        self._path = workspace / FILE
        self._name = hashlib.sha256(str(workspace).encode()).hexdigest()[:12]
        self._urls = list(dict.fromkeys(urls))
        self._states = states
        self._told: dict[str, object] = {}  # the event of the last state that each URL took
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Look and tell, until cancelled."""
        if not self._urls:
            return
        self._told = await asyncio.get_running_loop().run_in_executor(None, self._read)
        await asyncio.gather(*(self._serve(url) for url in self._urls))

    async def _serve(self, url: str) -> None:
        # a thread of its own, none of those that everybody shares: a URL that never answers keeps it
        posting = ThreadPoolExecutor(1, "webhook")
        try:
            await self._tell(url, posting)
        finally:
            posting.shutdown(wait=False, cancel_futures=True)

    async def _tell(self, url: str, posting: ThreadPoolExecutor) -> None:
        loop, wait = asyncio.get_running_loop(), _FIRST_WAIT
        while True:
            await asyncio.sleep(_LOOK)
            try:
                states = await loop.run_in_executor(None, self._untold, url)
            except UnlearnError:
                continue
            for state in states:
                while not await loop.run_in_executor(posting, self._post, url, state):
                    await asyncio.sleep(wait)
                    wait = min(60.0, wait * 2)
                wait = _FIRST_WAIT
                await self._took(url, state)

    def _untold(self, url: str) -> list[State]:
        told = self._told.get(url)
        if isinstance(told, dict):
            return _after(told, self._states(None))
        return self._states(told if isinstance(told, str) else None)

    async def _took(self, url: str, state: State) -> None:
        self._told[url] = state.event
        async with self._writing:
            content = json.dumps(self._told).encode()
            try:
                await asyncio.get_running_loop().run_in_executor(
                    None, write_atomic, self._path, content
                )
            except UnlearnError as error:  # it goes on; what is not written is told again
                _log.warning("how far webhooks are was not written: %s", error)

    def _post(self, url: str, state: State) -> bool:
        name, moment = f"{self._name}.{state.number}.{state.state}", int(time.time())
        data: dict[str, Any] = {
            "number": state.number,
            "state": state.state,
            "receipt": state.receipt,
        }
        when = datetime.now(UTC).replace(microsecond=0).isoformat()
        told = {"type": f"takedown.{state.state}", "timestamp": when, "data": data}
        body = json.dumps(told).encode()
        headers = {
            "content-type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(moment),
            "webhook-signature": signature(self._secret, name, moment, body),
        }
        request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310
        try:
            with _OPENER.open(request, timeout=_PATIENCE) as answer:
                return 200 <= int(answer.status) < 300
        except (http.client.HTTPException, OSError, ValueError) as error:
            _log.warning("a webhook was not taken: %s", type(error).__name__)
            return False

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _askable(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        return False
    return bool(named) and url.isascii() and url.isprintable() and " " not in url


def _after(told: dict[str, object], states: list[State]) -> list[State]:
    """What is to be told after a file that has, for each takedown, the state told last.

    Such files were written before 0.3.0. From the first state on that it does not show to be told;
    some after that are told again.
    """
    ends = {s.number: i for i, s in enumerate(states) if told.get(str(s.number)) == s.state}
    begin = (i for i, s in enumerate(states) if i > ends.get(s.number, -1))
    return states[next(begin, len(states)) :]


class _Stay(urllib.request.HTTPRedirectHandler):
    """A receiver that sends elsewhere is not followed: it was not the one that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
