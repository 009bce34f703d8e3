"""From an exception to one line and an exit code.

Guarantees: an error of the tree keeps its code; what the operating system refuses is the machine's
fault (9); anything else is a defect (1), told on one line that names where it happened, quotes no
document, and asks for a report. A traceback is printed with `--debug` only.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from typing import Final

import typer

from llm_unlearn.cli.codes import DEFECT, STOPPED
from llm_unlearn.cli.output import Output
from llm_unlearn.errors import EnvironmentFailure, UnlearnError
from llm_unlearn.files import os_errors

# Errors of the command line itself. Typer has its own copy of click and names only this subclass.
UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]


@contextlib.contextmanager
def handled(out: Output, *, debug: bool) -> Iterator[None]:
    """Run a command inside; every failure leaves as `typer.Exit`, already told."""
    try:
        yield
    except (typer.Exit, UsageError):
        raise
    except (KeyboardInterrupt, typer.Abort) as error:
        out.fail(
            "Stopped", "Stopped.", "The workspace opens, and nothing accepted is lost.", STOPPED
        )
        raise typer.Exit(STOPPED) from error
    except Exception as error:
        if debug:
            out.errors.print(traceback.format_exc(), soft_wrap=True)
        told = _translate(error)
        if told is None:
            out.fail("Defect", *_defect(error), DEFECT)
            raise typer.Exit(DEFECT) from error
        out.fail(type(told).__name__, told.problem, told.remedy, told.exit_code)
        raise typer.Exit(told.exit_code) from error


def _translate(error: Exception) -> UnlearnError | None:
    """The error in the words of the tree; None for a defect."""
    if isinstance(error, UnlearnError):
        return error
    if isinstance(error, MemoryError):
        return EnvironmentFailure("Out of memory.", "Close other programs, or use a smaller model.")
    if isinstance(error, OSError):
        try:
            with os_errors("go on"):
                raise error
        except UnlearnError as mapped:
            return mapped
        except OSError:
            where = f"{error.filename}: " if error.filename is not None else ""
            reason = error.strerror or type(error).__name__
            return EnvironmentFailure(f"{where}{reason}.", "Check the disk and who may use it.")
    return None


def _defect(error: Exception) -> tuple[str, str]:
    """What to say of a defect: where and of which kind, not its words, which may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}site-packages{os.sep}" not in f.filename] or frames
    place = f" in {own[-1].name}, {os.path.basename(own[-1].filename)} line {own[-1].lineno}"  # noqa: PTH119
    return (
        f"This is a defect of llm-unlearn: {type(error).__name__}{place}.",
        "Please report it, with what --debug prints (look through it first: it may quote a text).",
    )
