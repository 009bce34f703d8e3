"""Where output goes: results to standard output, messages and progress to standard error.

Guarantees: with `json` standard output gets exactly one object, whatever a library prints; progress
is drawn on a terminal only; no character from a document reaches a terminal as a control sequence.
"""

from __future__ import annotations

import json as jsons
import os
import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer
from rich.console import Console
from rich.text import Text

from llm_unlearn.cli.codes import CLOSED_PIPE

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

# C0 and C1 controls but for tab and line feed, and the marks that reorder what is read
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """A text that a terminal shows and does not obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def words(text: str, style: str = "") -> Text:
    """A text for rich, cleaned, in which brackets are brackets and not markup."""
    return Text(clean(text), style=style)


class Output:
    """The two streams of one command.

    Args:
        json: one JSON object instead of tables.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self._given = False
        self._stdout = sys.stdout
        if json:
            sys.stdout = sys.stderr  # a library that prints does not spoil the object
        self.console = Console(file=self._stdout, highlight=False, markup=False)
        self.errors = Console(stderr=True, highlight=False, markup=False)

    def result(self, value: Mapping[str, object], *shown: RenderableType) -> None:
        """Give the result: as JSON if asked for, else as it is shown to people."""
        if self.json:
            self._print_json(value)
        else:
            self.show(*shown)

    def show(self, *shown: RenderableType) -> None:
        """Print for people; with `json`, nothing."""
        if self.json:
            return
        with _open_pipe():
            for item in shown:
                self.console.print(item, soft_wrap=isinstance(item, Text))
            self._stdout.flush()

    def say(self, message: str, style: str = "") -> None:
        """A message on standard error, on one line."""
        self.errors.print(words(" ".join(message.split()), style), soft_wrap=True)

    def fail(self, kind: str, problem: str, remedy: str, code: int) -> None:
        """Tell a failure on one line; with `json` as an object too, unless one was given."""
        line = Text.assemble(
            ("error: ", "bold red"), words(" ".join(f"{problem} {remedy}".split()))
        )
        self.errors.print(line, soft_wrap=True)
        if self.json and not self._given:
            said = {"kind": kind, "problem": problem, "remedy": remedy, "exit_code": code}
            self._print_json({"error": said})

    def bar(self, what: str) -> Bar:
        """A progress bar that appears with the first news of it."""
        return Bar(self.errors, what)

    def _print_json(self, value: Mapping[str, object]) -> None:
        self._given = True
        with _open_pipe():
            self._stdout.write(jsons.dumps(value, ensure_ascii=False, indent=2) + "\n")
            self._stdout.flush()


class _open_pipe:  # noqa: N801
    """A reader that went away (`| head`) ends the program quietly."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, BrokenPipeError):
            # what is still buffered must not fail again when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(CLOSED_PIPE) from error


class Bar:
    """Progress on standard error; nothing at all when that is no terminal."""

    def __init__(self, console: Console, what: str) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._what = what
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def count(self, done: int) -> None:
        """So many are done; how many there are is not known."""
        self._set(self._what, done, None)

    def part(self, done: int, total: int) -> None:
        """So many of so many are done."""
        self._set(self._what, done, total)

    def step(self, label: str, done: int, total: int, loss: float) -> None:
        """So many of so many are done, the last one in `label` with this loss."""
        self._set(f"{self._what} {label}, loss {loss:.3f}", done, total)

    def _set(self, text: str, done: int, total: int | None) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(text, total=total)
        self._progress.update(self._task, description=text, completed=done, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._progress.stop()
