"""`demo`: the main job on packaged models, from start to proof."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_unlearn.cli.output import Output
from llm_unlearn.errors import VerificationFailed


def demo(
    out: Output,
    folder: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Where report, results and workspace go."),
    ] = Path("demo-out"),
    small: Annotated[
        bool, typer.Option("--small", help="Fewer documents and questions: a few minutes.")
    ] = False,
) -> None:
    """Run the whole road on a fictional corpus: separate, train, answer, take down, prove."""
    from llm_unlearn.demo.run import run_demo

    result = run_demo(folder, small=small, console=out.errors if out.json else out.console)
    out.result(result.as_json())
    failed = [check.claim for check in result.checks if not check.held]
    if failed:
        raise VerificationFailed(
            f"{len(failed)} of {len(result.checks)} claims do not hold: {'; '.join(failed)}.",
            "Please report it, with the results.",
        )
