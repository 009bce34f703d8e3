"""`ingest` and `where`: documents taken in, and where each of them went."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.options import DryRun, Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output, words

if TYPE_CHECKING:
    from llm_unlearn.readers import Report


def ingest(
    out: Output,
    workspace: WorkspaceDir,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .jsonl, .csv or .parquet file, or a folder of .txt and .md files.",
            show_default=False,
        ),
    ],
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken documents out and take the rest.")
    ] = False,
    dry_run: DryRun = False,
    piecewise: Annotated[
        bool,
        typer.Option(
            "--piecewise",
            help="Keep what was taken in when stopped; the same command goes on from there.",
        ),
    ] = False,
    each: Annotated[
        bool, typer.Option("--each", "-e", help="Name every document and where it goes.")
    ] = False,
    keys: Keys = None,
) -> None:
    """Take documents in: each to the store, to the corpus, or refused, and why.

    A file enters whole or not at all, unless piecewise.
    """
    with open_workspace(workspace, keys, write=not dry_run) as opened, out.bar("documents") as bar:
        broken = _broken(out, source) if skip_broken else None
        report = opened.ingest(
            source,
            skip_broken=skip_broken,
            dry_run=dry_run,
            piecewise=piecewise,
            progress=bar.count,
        )
    counts: Counter[str] = report.counts()
    value: dict[str, object] = {
        "dry_run": dry_run,
        "counts": {fate: counts[fate] for fate in ("store", "corpus", "refused", "known")},
        "broken": broken.broken_total if broken else 0,
        "rules": [
            {"fate": fate, "rule": rule, "reason": reason, "documents": number}
            for (fate, rule, reason), number in sorted(report.rules().items())
        ],
    }
    if each:
        value["documents"] = [
            {
                "id": placed.id,
                "subject": placed.subject,
                "fate": placed.decision.fate,
                "rule": placed.decision.rule,
                "reason": placed.decision.reason,
                "known": placed.known,
            }
            for placed in report.placed
        ]
    out.result(value, *render.ingested(report, dry_run=dry_run, each=each))


def _broken(out: Output, source: Path) -> Report:
    from llm_unlearn.readers import describe, scan_documents

    report = scan_documents(source)
    if report.broken_total:
        out.say(
            f"left out {report.broken_total} of {report.total} documents: {describe(report)}",
            "yellow",
        )
    return report


def where(
    out: Output,
    workspace: WorkspaceDir,
    document: Annotated[
        str, typer.Argument(metavar="DOCUMENT-ID", help="Its id.", show_default=False)
    ],
    keys: Keys = None,
) -> None:
    """Show where one document went, by which rule and why."""
    with open_workspace(workspace, keys, write=False) as opened:
        entry = opened.where(document)
    value: dict[str, object] = {
        "id": entry.id,
        "subject": entry.subject,
        "fate": entry.fate,
        "state": entry.state,
        "generation": entry.generation,
        "rule": entry.rule,
        "reason": entry.reason,
    }
    out.result(value, render.facts({name: str(shown) for name, shown in value.items()}), words(""))
