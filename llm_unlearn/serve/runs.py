"""The child process that carries takedowns out, so that answers go on while shards are retrained."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llm_unlearn.errors import WorkspaceLocked

_LOCKED: Final = WorkspaceLocked.exit_code
_PAUSE: Final = 0.5
_log = logging.getLogger("llm_unlearn.serve")


class Runs:
    """The one child process that carries takedowns out.

    If somebody else is writing when it begins, it is begun again until `patience` seconds are over.

    Args:
        untouched: whether nothing was done about takedowns of these numbers.

    Attributes:
        code: the exit code of the last one that ended; 0 when it did all; None before.
    """

    def __init__(
        self,
        path: Path,
        keys: Path | None,
        untouched: Callable[[list[int]], bool],
        patience: float = 120.0,
    ) -> None:
        self._path, self._keys, self._patience = path, keys, patience
        self._untouched = untouched
        self._task: asyncio.Task[None] | None = None
        self._starting = False
        self.code: int | None = None

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._starting or (self._task is not None and not self._task.done())

    async def start(self, numbers: list[int], *, probe: bool) -> None:
        """Begin.

        Raises:
            WorkspaceLocked: one is under way.
        """
        if self.running:
            raise WorkspaceLocked(
                "Takedowns are being carried out.", "Ask again when they are done."
            )
        self._starting = True  # a second request may come while the process is made
        try:
            given = [str(self._path), *map(str, numbers), *(["--probe"] if probe else [])]
            if self._keys is not None:
                given += ["--keys", str(self._keys)]
            process = await self._begin(given)
            self._task = asyncio.ensure_future(self._follow(process, numbers, given))
        finally:
            self._starting = False

    async def _begin(self, given: list[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "llm_unlearn.cli", "takedown", "run", *given),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,  # it may name documents: the journal tells states
            stderr=asyncio.subprocess.DEVNULL,
            cwd=self._path.parent,
            start_new_session=True,  # Ctrl-C of the server does not stop an accepted takedown
        )

    async def _follow(
        self, process: asyncio.subprocess.Process, numbers: list[int], given: list[str]
    ) -> None:
        """See how it ends, and begin again while somebody else is writing."""
        end = time.monotonic() + self._patience
        while (code := await process.wait()) == _LOCKED and time.monotonic() < end:
            if not await asyncio.to_thread(self._untouched, numbers):
                break
            await asyncio.sleep(_PAUSE)
            process = await self._begin(given)
        self.code = code
        if code:
            _log.error("carrying takedowns out ended with exit code %d", code)
