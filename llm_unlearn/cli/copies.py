"""`takedown copies`: backups, recipients and caches outside, which receipts list."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.options import Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output


def copies(
    out: Output,
    workspace: WorkspaceDir,
    add: Annotated[
        str | None,
        typer.Option("--add", metavar="KIND", help="Register a backup, recipient or cache."),
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="TEXT", help="Where it is, or who has it.")
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            "--subject", metavar="S", help="What it holds. Repeatable. Default: anything."
        ),
    ] = None,
    sealed: Annotated[
        bool, typer.Option("--sealed", help="It holds ciphertext of this workspace, and no keys.")
    ] = False,
    days: Annotated[
        int, typer.Option("--days", metavar="N", help="Gone so many days after a takedown.")
    ] = 30,
    gone: Annotated[
        int | None, typer.Option("--gone", metavar="NUMBER", help="This one is no longer there.")
    ] = None,
    keys: Keys = None,
) -> None:
    """Copies outside that takedowns list in their receipts: backups, recipients, caches.

    Exported adapters and audit kits are registered by `export` and `audit --kit` by themselves.
    """
    if (add is None) != (where is None) or (add is not None and gone is not None):
        raise UsageError("Give --add with --where, or --gone, or neither to list.")
    if add is not None and add not in ("backup", "recipient", "cache"):
        raise UsageError("--add takes backup, recipient or cache.")
    with open_workspace(workspace, keys, write=add is not None or gone is not None) as opened:
        if add is not None and where is not None:
            kind: Literal["backup", "recipient", "cache"] = add  # type: ignore[assignment]
            opened.desk.register(kind, where, subjects=subject or (), sealed=sealed, days=days)
        if gone is not None:
            opened.desk.copy_gone(gone)
        entries = opened.desk.copies()
    out.result(
        {"copies": [entry.model_dump(mode="json") for entry in entries]},
        render.table(
            "Copies outside",
            ("number", "kind", "where", "holds", "gone within", "gone"),
            [
                (
                    str(e.number),
                    e.kind,
                    e.where,
                    ("ciphertext of " if e.sealed else "") + (", ".join(e.subjects) or "anything"),
                    f"{e.days} days",
                    e.gone or "no",
                )
                for e in entries
            ],
        ),
    )
