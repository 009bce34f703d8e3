"""What commands share: options, and how a workspace is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from llm_unlearn.workspace import Workspace

WorkspaceDir = Annotated[
    Path, typer.Argument(metavar="WS", help="The workspace's directory.", show_default=False)
]
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys", "-k", metavar="DIR", help="Where its keys are now, if not where init put them."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Show what would be done; change nothing.")
]
JSON: Final = typer.Option("--json", help="Print one JSON object, for scripts.")
DEBUG: Final = typer.Option("--debug", help="Print a traceback with an error.")


def open_workspace(path: Path, keys: Path | None, *, write: bool) -> Workspace:
    """Open a workspace; only a command that changes it opens it for writing."""
    from llm_unlearn.workspace import Workspace

    return Workspace.open(path, keys=keys, readonly=not write)
