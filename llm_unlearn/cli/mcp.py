"""`mcp`: a workspace for assistants that speak the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_unlearn.cli.options import Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output


def mcp(
    out: Output,
    workspace: WorkspaceDir,
    allow_takedown: Annotated[
        bool,
        typer.Option(
            "--allow-takedown", help="Offer the tool that removes; it asks for words of its plan."
        ),
    ] = False,
    keys: Keys = None,
) -> None:
    """Serve a workspace over standard input and output: trace, plan, status, receipt.

    For an MCP client, which starts this command itself. Without --allow-takedown nothing can be changed.
    """
    from llm_unlearn.integrations.mcp import make_server

    with open_workspace(workspace, keys, write=allow_takedown) as opened:
        make_server(opened, takedowns=allow_takedown).run("stdio")
