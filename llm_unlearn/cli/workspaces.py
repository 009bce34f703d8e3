"""`init` and `status`: a workspace made, and how it stands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.options import Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output, words


def init(
    out: Output,
    workspace: WorkspaceDir,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            "-k",
            metavar="DIR",
            help="Where the keys go: outside the workspace and outside its backups. Default: a new "
            "directory under $LLM_UNLEARN_KEYS or ~/.local/share/llm-unlearn/keys.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings, as YAML.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="One setting on top of them, such as training.shards=8. Repeatable.",
        ),
    ] = None,
) -> None:
    """Make a new workspace: its settings, an empty ledger, and keys outside it."""
    from llm_unlearn.config import load_config
    from llm_unlearn.workspace import Workspace

    chosen = load_config(config, settings or ())
    with Workspace.create(workspace, keys=keys, config=chosen) as made:
        home = made.public_key.parent
        out.result(
            {
                "workspace": str(made.path),
                "keys": str(home),
                "public_key": str(made.public_key),
                "model": chosen.model,
                "embedder": chosen.embedder,
            },
            render.facts(
                {
                    "workspace": str(made.path),
                    "keys": f"{home}  (keep them out of the workspace's backups)",
                    "public key": f"{made.public_key}  (give it to whoever checks receipts)",
                }
            ),
            words(f"Next: llm-unlearn ingest {shlex.quote(str(workspace))} DOCUMENTS", "dim"),
        )


def status(out: Output, workspace: WorkspaceDir, keys: Keys = None) -> None:
    """Show what stands where: documents, shards, takedowns. Loads no model, changes nothing."""
    with open_workspace(workspace, keys, write=False) as opened:
        found = opened.status()
    out.result(found.as_json(), *render.status(found))
