"""What the routes share: the workspace opened for reading and for writing, the engine, the keys.

Two connections to one workspace: answers read through one while documents and takedowns are written
through the other, so that a long write makes no answer wait. One thing is written at a time
(`WorkspaceLocked`, 409, for a second that has waited three seconds, also when takedowns are carried out).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request

from llm_unlearn.answering import Answerer
from llm_unlearn.errors import AccessDenied, UnlearnError, WorkspaceLocked
from llm_unlearn.serve.access import AccessKeys, Key, Role
from llm_unlearn.serve.asking import answerers
from llm_unlearn.serve.engine import Engine
from llm_unlearn.serve.guarding import Guarding
from llm_unlearn.serve.metrics import Metrics
from llm_unlearn.serve.probing import Probes
from llm_unlearn.serve.room import Threads, TooLate
from llm_unlearn.serve.runs import Runs
from llm_unlearn.serve.watch import Watch
from llm_unlearn.serve.webhooks import State, Webhooks
from llm_unlearn.takedown.journal import Journal
from llm_unlearn.workspace import Workspace

T = TypeVar("T")
_SEARCHES = 4, 64  # threads, and how many may wait: more are told to come again
_EMBEDDINGS = 2, 16
_PAUSE = 1.0
_PATIENCE = 3.0
_log = logging.getLogger("llm_unlearn.serve")


class Backend:
    """One served workspace.

    Args:
        keys: where the workspace's own keys are now.
        webhooks: URLs that are told every state of a takedown, signed with `secret`.
    """

    def __init__(
        self,
        path: Path,
        keys: Path | None = None,
        webhooks: Sequence[str] = (),
        secret: str = "",
    ) -> None:
        self.path, self.keys = path.absolute(), keys
        self.reader = Workspace.open(path, keys=keys)
        models = self.reader.opened.models
        self.writer = Workspace.open(path, keys=keys, models=models)
        self.config = self.reader.config.serving
        self.access = AccessKeys(self.path)
        self.metrics = Metrics()
        self._watch = Watch(self.path / "workspace.db")
        self.engine = Engine(lambda: models.host, self._watch, self.config)
        # threads of their own: no takedown waits for searches, and no search for many embeddings
        seconds = self.config.answer_seconds
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="desk")
        self.searches = Threads("searches", *_SEARCHES, seconds)
        self.embeddings = Threads("embeddings", *_EMBEDDINGS, seconds)
        self.runs = Runs(self.path, keys, self._approved)
        self.probes = Probes()
        self.webhooks = Webhooks(self.path, webhooks, secret, self._states)
        self.guarding = Guarding(self.reader.opened, self.reader.config.guard)
        self._ways: dict[str, Answerer] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._again = False

    @property
    def ways(self) -> dict[str, Answerer]:
        """An answerer for each way to answer; the first call loads the embedder."""
        if self._ways is None:
            self._ways = answerers(self.reader.opened)
        return self._ways

    def start(self) -> None:
        """Load the models, and begin to answer.

        Raises:
            EnvironmentFailure: a model cannot be loaded.
        """
        self.reader.opened.models.host  # noqa: B018 - loads it
        self.ways["workspace"].stand()
        self.engine.start()

    def close(self) -> None:
        """End everything."""
        self.engine.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.searches.close()
        self.embeddings.close()
        self._watch.close()
        self.writer.close()
        self.reader.close()

    def _approved(self, numbers: Sequence[int]) -> bool:
        """Whether these takedowns are approved, and none was begun."""
        states = {row.number: row.state for row in self.reader.desk.all()}
        return all(states.get(number) == "approved" for number in numbers)

    def _states(self, after: str | None) -> list[State]:
        """What webhooks tell: the states that takedowns reached after one."""
        opened = self.reader.opened
        return [State(*one) for one in Journal(opened.database, opened.keyring).reached(after)]

    async def apart(self, work: Callable[..., T], *given: Any, **more: Any) -> T:
        """Do something that blocks, outside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(work, *given, **more))

    async def write(self, work: Callable[..., T], *given: Any, **more: Any) -> T:
        """Do something that takes the writer's lock, waiting a little for whoever has it.

        Raises:
            WorkspaceLocked: another process writes, or takedowns are being carried out.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return await self.apart(work, *given, **more)
            except WorkspaceLocked:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)

    def look(self) -> None:
        """Find and fence copies of what undecided takedowns name, while requests go on."""
        self._again = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        while self._again:
            self._again = False
            try:
                await self.apart(self.writer.desk.look)
            except WorkspaceLocked:  # somebody else is writing
                self._again = True
                await asyncio.sleep(_PAUSE)
            except UnlearnError as error:  # the plan of the takedown will tell
                _log.warning("copies were not looked for: %s", type(error).__name__)
            await self.apart(self.engine.settle, self.config.answer_seconds)

    async def modelled(self, work: Callable[[], T]) -> T:
        """Do something with the model, in the model's thread, unless nobody waits for it any more.

        Raises:
            Busy: as many as may are waiting.
            TooLate: its time was up.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def give(result: T) -> None:
            if not future.done():
                future.set_result(result)

        def fail(error: Exception) -> None:
            if not future.done():
                future.set_exception(error)

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # carried to whoever asked
                loop.call_soon_threadsafe(fail, error)
            else:
                loop.call_soon_threadsafe(give, result)

        self.engine.call(run, lambda: not future.done())
        try:
            return await asyncio.wait_for(future, self.config.answer_seconds)
        except TimeoutError:
            raise TooLate("The model had no time for this.", "Ask again later.") from None


def backend(request: Request) -> Backend:
    """The backend of a request."""
    found: Backend = request.app.state.backend
    return found


def caller(request: Request) -> Key:
    """The key that a request came with; the gate has checked it."""
    key: Key | None = request.scope.get("state", {}).get("key")
    if key is None:
        raise AccessDenied("No API key came with this request.")
    return key


def may(*roles: Role) -> Callable[[Request], Key]:
    """A dependency: the caller's key, if its role is one of these."""

    def check(request: Request) -> Key:
        key = caller(request)
        if key.role not in roles:
            raise AccessDenied(
                f"A key with the role {key.role} may not do this.", f"It needs: {', '.join(roles)}."
            )
        return key

    return check
