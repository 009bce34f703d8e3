"""The commands put together, and what happens around each of them."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from llm_unlearn.cli import (
    bench_training,
    benches,
    comparing,
    copies,
    demos,
    desk,
    documents,
    foreign,
    forgetting,
    learning,
    mcp,
    planning,
    probing,
    receipts,
    serving,
    shards,
    takedowns,
    workspaces,
)
from llm_unlearn.cli.codes import MEANING, USAGE, epilog
from llm_unlearn.cli.failures import UsageError, handled
from llm_unlearn.cli.onestep import OneStep
from llm_unlearn.cli.options import DEBUG, JSON
from llm_unlearn.cli.output import Output

_COMMANDS: tuple[tuple[Callable[..., None], tuple[int, ...]], ...] = (
    (workspaces.init, (3, 5, 9)),
    (documents.ingest, (3, 5, 6, 9)),
    (foreign.scan, (3, 4, 6, 9)),
    (foreign.import_, (3, 4, 5, 6, 9)),
    (learning.train, (5, 6, 9)),
    (learning.ask, (3, 5, 6, 7, 9)),
    (forgetting.forget, (3, 4, 5, 6, 8, 9)),
    (comparing.compare, (3, 4, 5, 6, 8, 9)),
    (takedowns.correct, (3, 4, 5, 6, 7, 9)),
    (takedowns.resume, (5, 6, 9)),
    (probing.probe, (3, 4, 5, 6, 9)),
    (probing.report, (3, 4, 5, 9)),
    (receipts.verify, (3, 4, 5, 6, 8, 9)),
    (shards.audit, (3, 4, 5, 6, 8, 9)),
    (shards.export, (3, 4, 5, 6, 9)),
    (planning.plan, (4,)),
    (workspaces.status, (5, 6, 9)),
    (mcp.mcp, (5, 6, 9)),
    (serving.serve, (3, 5, 6, 9)),
    (documents.where, (4, 5, 6, 9)),
    (demos.demo, (3, 8, 9)),
)
_SPEAKING = (mcp.mcp, serving.serve)
"""These speak a protocol until they end and have no one result, so no `--json`."""
_DESK: tuple[tuple[Callable[..., None], tuple[int, ...]], ...] = (
    (takedowns.takedown, (3, 4, 5, 6, 9)),
    (desk.submit, (3, 4, 5, 6, 9)),
    (desk.list_, (5, 6)),
    (desk.show, (3, 4, 5, 6)),
    (desk.plan, (3, 4, 5, 6, 9)),
    (desk.approve, (3, 4, 5, 6, 9)),
    (desk.run, (3, 4, 5, 6, 9)),
    (desk.refuse, (3, 4, 5, 6)),
    (desk.withdraw, (3, 4, 5, 6)),
    (desk.restore, (3, 4, 5, 6, 9)),
    (desk.review, (3, 4, 5, 6, 9)),
    (desk.receipt, (3, 4, 5, 6, 8, 9)),
    (copies.copies, (3, 4, 5, 6, 9)),
    (takedowns.resume, (5, 6, 9)),
)
_ACCESS: tuple[tuple[Callable[..., None], tuple[int, ...]], ...] = (
    (serving.add, (3, 5, 6, 9)),
    (serving.list_, (5, 6)),
    (serving.revoke, (4, 5, 6, 9)),
)
_BENCHES: tuple[tuple[Callable[..., None], tuple[int, ...]], ...] = (
    (benches.store, (3, 4, 9)),
    (bench_training.train, (3, 9)),
    (bench_training.deletion, (3, 4, 9)),
    (bench_training.orders, (3, 4, 9)),
    (benches.answer, (9,)),
    (benches.forget, (3, 9)),
    (benches.takedown, (3, 4, 9)),
    (serving.bench_serve, (9,)),
    (serving.bench_guard, (3, 9)),
    (benches.probe, (3, 9)),
)


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        code = _app()(arguments or ["--help"], standalone_mode=False, prog_name="llm-unlearn")
    except UsageError as error:
        return _usage(error, arguments)
    return code if isinstance(code, int) and code in MEANING else 0


def _app() -> typer.Typer:
    app = _group("Text that can be taken back from a language model, with proof.", _COMMANDS)
    app.callback()(_program)
    bench = _group("Measure this machine, beside other programs where installed.", _BENCHES)
    bench.callback()(lambda: None)  # stays a group whatever the number of its commands
    app.add_typer(bench, name="bench")
    steps = _group("Remove text, at one go or step by step.", _DESK)
    steps.callback()(lambda: None)
    app.add_typer(steps, name="takedown", cls=OneStep)
    access = _group("API keys of the server: who may do what, and see which documents.", _ACCESS)
    access.callback()(lambda: None)
    app.add_typer(access, name="access")
    return app


def _group(
    about: str, commands: tuple[tuple[Callable[..., None], tuple[int, ...]], ...]
) -> typer.Typer:
    app = typer.Typer(
        help=about,
        epilog=epilog(),
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for function, codes in commands:
        # paragraphs on one line each: rich keeps line breaks inside them
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        help_text = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        # `import` is no name for a function, and `serve` is taken twice
        name = function.__name__.rstrip("_").removeprefix("bench_")
        app.command(name, help=help_text, epilog=epilog(codes))(_wrap(function))
    return app


def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda value: _version(value),
            is_eager=True,
            help="Print the version and end.",
        ),
    ] = False,
) -> None:
    """What comes before a command."""


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"llm-unlearn {importlib.metadata.version('llm-unlearn')}\n")
        raise typer.Exit


def _wrap(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `Output`, `--json` (unless it speaks) and `--debug`, and tell its failures."""
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.annotation is not Output]
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = {"json": JSON, "debug": DEBUG}
    if function in _SPEAKING:
        del options["json"]
    extra = [
        inspect.Parameter(name, keyword, default=False, annotation=Annotated[bool, option])
        for name, option in options.items()
    ]

    @functools.wraps(function)
    def command(*, json: bool = False, debug: bool, **given: Any) -> None:
        out = Output(json)
        with handled(out, debug=debug):
            _quiet(debug)
            function(out, **given)

    command.__signature__ = signature.replace(parameters=[*own, *extra])  # type: ignore[attr-defined]
    return command


def _quiet(debug: bool) -> None:
    """Libraries draw no bars, and without `--debug` they do not warn about themselves."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.simplefilter("ignore")


def _usage(error: Exception, arguments: list[str]) -> int:
    """A wrong command line; here the options were never parsed, so `--json` is looked for."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    context = getattr(error, "ctx", None)
    program = context.command_path if context is not None else "llm-unlearn"
    message = error.format_message()  # type: ignore[attr-defined]
    Output("--json" in before).fail("Usage", message, f"See: {program} --help", USAGE)
    return USAGE
