"""One answer under way: between the thread that makes it and the connection that takes it.

    waiting --> decoding --> finished
       ^            |            |         a change that touches its sources, nothing taken yet
       +------------+------------+
                    |            |         the same, but words were taken: it ends, saying why
                    +--> ended <-+

Guarantees: `take` and `whole` give nothing while a commit to the workspace is newer than the last look
at this answer's sources; what was made before a takedown and not yet taken is thrown away with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from llm_unlearn.answering import Choice
from llm_unlearn.errors import EnvironmentFailure, UnlearnError
from llm_unlearn.models.sampling import Drawn, Sampler
from llm_unlearn.serve.asking import Ask
from llm_unlearn.serve.guarding import Watch
from llm_unlearn.serve.speech import Speech

T = TypeVar("T")
Finish = Literal["stop", "length", "takedown", "guard"]
_log = logging.getLogger("llm_unlearn.serve")


@dataclass(frozen=True)
class Piece:
    """Some words of the answer and the tokens they end with; at last why it ended."""

    text: str
    tokens: tuple[Drawn, ...] = ()
    finish: Finish | None = None


@dataclass(eq=False)
class Job:
    """One answer.

    Args:
        wake: called from the model's thread when there is something to take.
        seconds: until it is given up.
    """

    ask: Ask
    sampler: Callable[[], Sampler]  # a new one each time, so that what is made again draws the same
    most: int
    stops: Sequence[str] = ()
    wake: Callable[[], None] = lambda: None
    seconds: float = 120.0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    began: float = field(default_factory=time.monotonic)
    # kept by the engine
    choice: Choice | None = None
    speech: Speech | None = None
    drawing: Sampler | None = None
    watch: Watch = field(default_factory=Watch)
    read: int = 0  # tokens of the prompt
    made: int = 0  # tokens of the answer
    pending: list[Piece] = field(default_factory=list)
    failure: UnlearnError | None = None
    done: bool = False
    sent: bool = False
    ended: bool = False  # its sources changed after words were taken
    gone: bool = False
    redone: int = 0

    @property
    def late(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() - self.began > self.seconds

    def put(self, piece: Piece) -> None:
        """Add words; with a finish it is done."""
        with self.lock:
            if self.done:
                return
            if piece.text or piece.tokens or piece.finish:
                self.pending.append(piece)
            self.done = piece.finish is not None
        self.wake()

    def fail(self, failure: UnlearnError) -> None:
        """End it with an error; what was not taken is thrown away."""
        with self.lock:
            self.failure, self.done = failure, True
            self.pending.clear()
        self.wake()

    def revoke(self) -> bool:
        """Its sources changed: forget what was not taken. True if it is to be made again."""
        with self.lock:
            self.pending.clear()
            self.choice = self.speech = self.drawing = None
            self.watch = Watch()
            if self.sent:
                self.pending.append(Piece("", (), "takedown"))
                self.done = self.ended = True
            else:
                self.done, self.failure = False, None
                self.redone += 1
            again = not self.sent
        self.wake()
        return again


def defect(error: Exception) -> EnvironmentFailure:
    """Log a defect by its kind and place, since its words can quote a text; what a caller is told."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = (
        "" if place is None else f" at line {place.tb_lineno} of {place.tb_frame.f_code.co_name}"
    )
    _log.error("defect in the model's thread: %s%s", type(error).__name__, where)
    return EnvironmentFailure("The server failed at this answer.", "Please report it.")


class Mailbox:
    """How a coroutine takes a job's pieces.

    Args:
        fresh: whether the engine has looked at the sources since the last commit; asked under the
            job's lock, right before words leave.
        poke: asks the engine to look.
    """

    def __init__(self, job: Job, fresh: Callable[[], bool], poke: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                return  # the loop has ended, and nobody takes any more

        self._event, self._fresh, self._poke = event, fresh, poke
        self._ended = False  # what `Job.ended` was when words were taken last
        self.job = job
        job.wake = wake

    def _there(self, *, whole: bool) -> bool:
        """Whether words can leave now; under the job's lock."""
        if not (self.job.done if whole else self.job.done or self.job.pending):
            return False
        if not self._fresh():
            self._poke()
            return False
        if self.job.failure is not None:
            raise self.job.failure
        return True

    def _take(self) -> list[Piece] | None:
        job = self.job
        with job.lock:
            if not self._there(whole=False):
                return None
            pieces, job.pending = job.pending, []
            job.sent, self._ended = True, job.ended
            return pieces

    def _look(self) -> tuple[int, list[Piece]] | None:
        with self.job.lock:
            return (self.job.redone, self.job.pending.copy()) if self._there(whole=True) else None

    async def take(self) -> list[Piece]:
        """What is there, once something is.

        Raises:
            UnlearnError: there is no answer.
        """
        while True:
            self._event.clear()
            pieces = self._take()
            if pieces is not None:
                return pieces
            await self._event.wait()

    async def stands(self) -> bool:
        """Whether what was taken last can still be sent, as of the last commit there was."""
        while True:
            self._event.clear()
            with self.job.lock:
                if self.job.ended != self._ended:
                    return False
                if self._fresh():
                    return True
            self._poke()
            await self._event.wait()

    async def whole(self, make: Callable[[Sequence[Piece]], T], *, apart: bool = False) -> T:
        """What is made of the whole answer, once it is there; made anew if the answer is.

        Args:
            apart: make it in another thread.

        Raises:
            UnlearnError: there is no answer.
        """
        made: tuple[int, T] | None = None
        while True:
            self._event.clear()
            if made is not None and made[0] != self.job.redone:
                made = None
            seen = self._look()
            if seen is None:
                await self._event.wait()
            elif made is not None and made[0] == seen[0]:
                return made[1]
            else:
                redone, pieces = seen
                made = redone, (await asyncio.to_thread(make, pieces) if apart else make(pieces))
