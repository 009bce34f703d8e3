"""`compare`: an experiment from one config file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import VerificationFailed

if TYPE_CHECKING:
    from llm_unlearn.experiments.summary import Metric, Row


def compare(
    out: Output,
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="Such as configs/tofu.yaml.", show_default=False),
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where results and work go, in the clear."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=PATH", help="Where data lies. Repeatable."),
    ] = None,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the config. Repeatable."),
    ] = None,
) -> None:
    """Compare ways of forgetting on the same documents: one table, one plot, one JSON.

    Teaches adapters, forgets by every chosen method, deletes exactly, retrains, and builds never-had by
    itself; then asks all of them the same. Goes on where it was interrupted. Workspaces of its own are
    made in --out; no other is touched.
    """
    if folder is None:
        raise UsageError("Say where the results go: --out DIR.")
    from llm_unlearn.experiments.run import run

    paths = dict(_pair(text) for text in data or [])
    result = run(config, folder, paths, chosen or [], told=out.say)
    out.result({"out": str(folder), **result.plain}, *_shown(result.rows), words(f"In {folder}."))
    if result.failed:
        raise VerificationFailed(
            f"Exact deletion differs from never-had: {'; '.join(result.failed[:3])}.",
            "Please report it, with the results.",
        )


def _pair(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not sign or not name or not path:
        raise UsageError(f"--data {text}: write NAME=PATH, such as tofu=data/tofu.")
    return name, path


def _shown(rows: list[Row]) -> list[Any]:
    def cell(metric: Metric | None) -> str:
        if metric is None:
            return "–"
        error = metric.standard_error
        return f"{metric.mean:.3f}" + (f" ± {error:.3f}" if error is not None else "")

    lines = [
        (
            row.side,
            row.name,
            row.verdict,
            ", ".join(row.returns) or "–",
            cell(row.metrics.get("forget probability")),
            cell(row.metrics.get("relearned")),
            cell(row.metrics.get("utility")),
        )
        for row in rows
    ]
    titles = ("side", "row", "verdict", "comes back", "known", "relearned", "utility")
    return [render.table("The whole table is in table.md", titles, lines)] if rows else []
