"""`serve` and `access`: a workspace over HTTP, and who may do what there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.options import Keys, WorkspaceDir
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import EnvironmentFailure, WorkspaceMissing

if TYPE_CHECKING:
    from llm_unlearn.serve.access import AccessKeys, Key


def serve(
    out: Output,
    workspace: WorkspaceDir,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="N", min=0, max=65535, help="On which port.")
    ] = 8000,
    keys: Keys = None,
) -> None:
    """Serve a workspace over HTTP: an OpenAI-compatible chat with citations, and its operations.

    Every request carries an API key: make one with `access add` first. Ends with Ctrl-C or SIGTERM.
    """
    try:
        from llm_unlearn.serve.run import start
    except ModuleNotFoundError as missing:
        raise EnvironmentFailure(
            f"{missing.name} is not installed.", "Run: pip install 'llm-unlearn[serve]'"
        ) from missing
    now = datetime.now(UTC)
    if not any(key.live(now) for key in _keys(workspace).all()):
        out.say(f"No API key opens anything yet: llm-unlearn access add {workspace} NAME")
    start(workspace, keys, host, port)


def add(
    out: Output,
    workspace: WorkspaceDir,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    role: Annotated[
        Literal["reader", "operator", "auditor"], typer.Option("--role", help="What it may do.")
    ] = "reader",
    group: Annotated[
        list[str] | None,
        typer.Option("--group", "-g", metavar="G", help="Access group. Repeatable."),
    ] = None,
    days: Annotated[
        int | None, typer.Option("--days", metavar="N", min=0, help="It ends after so many days.")
    ] = None,
) -> None:
    """Make an API key; it is shown this once and kept as a hash alone."""
    expires = None if days is None else datetime.now(UTC).date() + timedelta(days=days)
    key, told = _keys(workspace).add(name, role, group or (), expires)
    out.result(
        {**_json(key), "key": told},
        words(told),
        words("Keep it: it is shown this once."),
    )


def list_(out: Output, workspace: WorkspaceDir) -> None:
    """Every API key: its role, groups and state."""
    found = _keys(workspace).all()
    out.result(
        {"keys": [_json(key) for key in found]},
        render.table(
            "API keys",
            ("id", "name", "role", "groups", "state"),
            [(key.id, key.name, key.role, ", ".join(key.groups), _state(key)) for key in found],
        ),
    )


def revoke(
    out: Output,
    workspace: WorkspaceDir,
    which: Annotated[str, typer.Argument(metavar="KEY", help="Its id or name.")],
) -> None:
    """End an API key; from the next request on it opens nothing."""
    key = _keys(workspace).revoke(which)
    out.result(_json(key), words(f"{key.name} ({key.id}) opens nothing any more."))


def _keys(workspace: Path) -> AccessKeys:
    from llm_unlearn.serve.access import AccessKeys

    if not (workspace / "workspace.db").is_file():
        raise WorkspaceMissing(
            f"There is no workspace at {workspace}.", f"Run: llm-unlearn init {workspace}"
        )
    return AccessKeys(workspace)


def _state(key: Key) -> str:
    if key.revoked is not None:
        return "revoked"
    return "in use" if key.live(datetime.now(UTC)) else "expired"


def _json(key: Key) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "groups": list(key.groups),
        "state": _state(key),
        "created": key.created.isoformat(),
        "expires": key.expires.isoformat() if key.expires else None,
    }
