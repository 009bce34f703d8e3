"""Webhooks: every state of every takedown, told to servers elsewhere, signed.

    POST URL
    webhook-id: WORKSPACE.NUMBER.STATE
    webhook-timestamp: seconds since 1970
    webhook-signature: v1,BASE64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY"))

    {"type": "takedown.fenced", "timestamp": "...",
     "data": {"number": 3, "state": "fenced", "receipt": null}}

as in the Standard Webhooks specification, so its libraries verify them. The body names no document, no
subject and nobody; a receiver asks for what it needs with a key of its own.

Guarantees: a state that the journal reaches, by whatever process, is told at least once to each URL, in
order for each takedown, until the URL answers 2xx; what was told is kept in `WS/webhooks.json`, so a state
that came while the server was down is told when it is up again. A state that is passed within one look
(half a second) is not told by itself: the next one says more. A URL that fails is tried again after 1, 2,
4 ... 60 seconds and holds nobody else up.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from llm_unlearn.errors import InputError, UnlearnError
from llm_unlearn.files import write_atomic

FILE: Final = "webhooks.json"
_LOOK = 0.5
_PATIENCE = 10.0
_log = logging.getLogger("llm_unlearn.serve")


@dataclass(frozen=True)
class State:
    """Where one takedown stands."""

    number: int
    state: str
    receipt: str | None


def signature(secret: bytes, name: str, moment: int, body: bytes) -> str:
    """The header that proves who sent a body."""
    signed = b".".join((name.encode(), str(moment).encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def verify(secret: bytes, headers: dict[str, str], body: bytes, *, seconds: float = 300) -> bool:
    """Whether a webhook is from whoever holds the secret, and not old; for receivers in Python."""
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
        secret: at least 24 bytes; receivers hold the same.
        states: all takedowns as they stand.

    Raises:
        InputError: a URL or the secret is unusable.
    """

    def __init__(
        self, workspace: Path, urls: Sequence[str], secret: str, states: Callable[[], list[State]]
    ) -> None:
        for url in urls:
            if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
                raise InputError(f"{url!r} is no http or https address.")
        self._secret = secret.removeprefix("whsec_").encode()
        if urls and len(self._secret) < 24:
            raise InputError(
                "The webhooks' secret is shorter than 24 bytes.",
                "Set LLM_UNLEARN_WEBHOOK_SECRET to a long random one.",
            )
        self._path = workspace / FILE
        self._name = hashlib.sha256(str(workspace).encode()).hexdigest()[:12]
        self._urls = list(urls)
        self._states = states
        self._told: dict[str, dict[str, str]] = {}

    async def run(self) -> None:
        """Look and tell, until cancelled."""
        loop = asyncio.get_running_loop()
        self._told = await loop.run_in_executor(None, self._read)
        await asyncio.gather(*(self._serve(url) for url in self._urls))

    async def _serve(self, url: str) -> None:
        loop, wait = asyncio.get_running_loop(), 1.0
        told = self._told.setdefault(url, {})
        while True:
            await asyncio.sleep(_LOOK)
            try:
                states = await loop.run_in_executor(None, self._states)
            except UnlearnError:
                continue
            for state in states:
                if told.get(str(state.number)) == state.state:
                    continue
                if not await loop.run_in_executor(None, self._post, url, state):
                    await asyncio.sleep(wait)
                    wait = min(60.0, wait * 2)
                    break
                wait = 1.0
                told[str(state.number)] = state.state
                await loop.run_in_executor(None, self._write)

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
        except (urllib.error.URLError, OSError, ValueError) as error:
            _log.warning("a webhook was not taken: %s", type(error).__name__)
            return False

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            found: dict[str, dict[str, str]] = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def _write(self) -> None:
        write_atomic(self._path, json.dumps(self._told).encode())


class _Stay(urllib.request.HTTPRedirectHandler):
    """A receiver that sends elsewhere is not followed: it was not the one that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
