"""The child process that probes a subject, and the reports that came of the last ones, in memory."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import ValidationError

from llm_unlearn.errors import WorkspaceLocked
from llm_unlearn.eval.cards import Report
from llm_unlearn.serve.probe import Order, Problem

State = Literal["running", "done", "failed"]
KEPT: Final = 16
"""So many of them are known."""


@dataclass
class Probe:
    """One probe of this server."""

    number: int
    began: str
    state: State = "running"
    ended: str | None = None
    problem: str | None = None
    report: Report | None = None


class Probes:
    """The child process that probes, one at a time, and what came of the last ones."""

    def __init__(self) -> None:
        self._made: dict[int, Probe] = {}
        self._count = 0
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def find(self, number: int) -> Probe | None:
        """One that is still known."""
        return self._made.get(number)

    async def start(self, order: Order) -> Probe:
        """Begin.

        Raises:
            WorkspaceLocked: one is under way.
        """
        if self._task is not None and not self._task.done():
            raise WorkspaceLocked("A probe is under way.", "Ask again when it is done.")
        self._count += 1
        probe = Probe(self._count, _now())
        self._made[probe.number] = probe
        for number in list(self._made)[:-KEPT]:
            del self._made[number]
        self._task = asyncio.ensure_future(self._run(probe, order))
        return probe

    async def _run(self, probe: Probe, order: Order) -> None:
        said = b""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "llm_unlearn.serve.probe"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                cwd=order.path.parent,
            )
            said, _ = await self._process.communicate(order.model_dump_json().encode())
            probe.report = Report.model_validate_json(said)
        except ValidationError:
            probe.problem = "The process that probes ended without a report."
            with contextlib.suppress(ValidationError):
                probe.problem = Problem.model_validate_json(said).problem
        except OSError:
            probe.problem = "The process that probes could not be started."
        probe.ended = _now()
        probe.state = "failed" if probe.report is None else "done"

    def stop(self) -> None:
        """End the one that is under way; nothing is lost that cannot be asked again."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
