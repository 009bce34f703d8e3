"""The server on a port: uvicorn, with clients who take their time held to it.

Guarantees: a client that does not send its whole header, or takes nothing of what waits for it, for
`serving.client_seconds` is cut off. On SIGTERM or Ctrl-C no connection is accepted any more, answers
under way go on for `serving.shutdown_seconds`, then the rest is dropped. One process, one model.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm_unlearn.serve.app import make_app
from llm_unlearn.serve.backend import Backend
from llm_unlearn.serve.events import Line


def make_server(server: Backend, host: str, port: int) -> uvicorn.Server:
    """uvicorn over a backend, not yet running."""
    seconds = server.config.client_seconds

    class Patient(_Patient):
        patience = seconds

    config = uvicorn.Config(
        make_app(server),
        host=host,
        port=port,
        http=Patient,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, int(seconds)),
        timeout_graceful_shutdown=max(1, int(server.config.shutdown_seconds)),
        h11_max_incomplete_event_size=32 * 1024,
    )
    return uvicorn.Server(config)


class _Patient(H11Protocol):
    """uvicorn's connection, which waits only so long for its client."""

    patience = 20.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # any byte that the client has not taken holds the next ones back: see `events`
        transport.set_write_buffer_limits(high=0)
        self.app_state = {**self.app_state, "line": Line(transport, self.flow.drain)}
        self._header: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._left = 0
        self._await_header()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop("_header")
        elif before is None or before.response_complete:
            self._await_header()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._left = self.transport.get_write_buffer_size()
        self._stop("_stalled")
        self._stalled = self.loop.call_later(self.patience, self._look)

    def resume_writing(self) -> None:
        self._stop("_stalled")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_header")
        self._stop("_stalled")
        super().connection_lost(exc)

    def _look(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= self._left:
            self.transport.abort()
            return
        self._left = left
        self._stalled = self.loop.call_later(self.patience, self._look)

    def _await_header(self) -> None:
        if self._header is None:
            self._header = self.loop.call_later(self.patience, self._cut)

    def _cut(self) -> None:
        self._header = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _stop(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name, None)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


def _logs() -> None:
    """One line an event on standard error, without anything that a caller sent."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name, level in (("llm_unlearn.serve", logging.INFO), ("uvicorn.error", logging.INFO)):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.setLevel(level)
        log.propagate = False
    logging.getLogger("uvicorn.error").addFilter(_wordless)


def _wordless(record: logging.LogRecord) -> Any:
    """Tracebacks can quote a text: only the kind of error is logged."""
    if record.exc_info and record.exc_info[0] is not None:
        record.msg = f"{str(record.msg).strip()}: {record.exc_info[0].__name__}"
        record.args, record.exc_info, record.exc_text = (), None, None
    return True


def start(
    path: Path, keys: Path | None, host: str, port: int, webhooks: Sequence[str], secret: str
) -> None:
    """Open a workspace and serve it until told to stop."""
    _logs()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file
    server = Backend(path, keys, webhooks, secret)
    try:
        make_server(server, host, port).run()
    finally:
        server.close()
