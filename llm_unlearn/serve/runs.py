"""The child process that carries takedowns out, so that answers go on while shards are retrained."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from llm_unlearn.errors import WorkspaceLocked


class Runs:
    """The one child process that carries takedowns out."""

    def __init__(self, path: Path, keys: Path | None) -> None:
        self._path, self._keys = path, keys
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._process is not None and self._process.returncode is None

    async def start(self, numbers: list[int], *, probe: bool) -> None:
        """Begin.

        Raises:
            WorkspaceLocked: one is under way.
        """
        if self.running:
            raise WorkspaceLocked(
                "Takedowns are being carried out.", "Ask again when they are done."
            )
        given = [str(self._path), *map(str, numbers), *(["--probe"] if probe else [])]
        if self._keys is not None:
            given += ["--keys", str(self._keys)]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "llm_unlearn.cli", "takedown", "run", *given),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,  # it may name documents: the journal tells states
            stderr=asyncio.subprocess.DEVNULL,
            cwd=self._path.parent,
            start_new_session=True,  # Ctrl-C of the server does not stop an accepted takedown
        )

    async def wait(self) -> int | None:
        """Until the one that is under way has ended; its exit code."""
        return None if self._process is None else await self._process.wait()
