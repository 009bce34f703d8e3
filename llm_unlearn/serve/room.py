"""How many may wait, and for how long: what more are told, and threads for work that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from llm_unlearn.errors import EnvironmentFailure

T = TypeVar("T")


class Busy(EnvironmentFailure):
    """No room in the queue."""


class TooLate(EnvironmentFailure):
    """The time of an answer was up."""


class Threads:
    """Threads for one kind of work, apart from all other work's.

    Args:
        what: the work, as a caller is told of it.
        count: threads.
        most: calls that may be under way or wait; more are refused at once.
        seconds: that a call may take, its waiting included.
    """

    def __init__(self, what: str, count: int, most: int, seconds: float) -> None:
        self._what = what
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=what)
        self.room = threading.BoundedSemaphore(most)
        self._seconds = seconds

    async def do(self, work: Callable[..., T], *given: Any) -> T:
        """Do it in one of the threads.

        Raises:
            Busy: as many as may are waiting.
            TooLate: its time was up.
        """
        if not self.room.acquire(blocking=False):
            raise Busy(f"Too many {self._what} are under way.", "Ask again in a moment.")
        try:
            future = self._pool.submit(work, *given)
        except RuntimeError:
            self.room.release()
            raise
        future.add_done_callback(lambda _: self.room.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            raise TooLate("There was no time for this.", "Ask again later, or for less.") from None

    def close(self) -> None:
        """End the threads; what waits is given up."""
        self._pool.shutdown(wait=True, cancel_futures=True)
