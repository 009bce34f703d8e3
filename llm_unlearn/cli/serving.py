"""`serve` and `access`: a workspace over HTTP, and who may do what there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.options import Keys, WorkspaceDir
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import EnvironmentFailure, WorkspaceMissing
from llm_unlearn.serve import memory

if TYPE_CHECKING:
    from llm_unlearn.eval.summary import Estimate
    from llm_unlearn.serve.access import AccessKeys, Key


@contextmanager
def _extra() -> Iterator[None]:
    """Tell which package of the extra `serve` is missing."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise EnvironmentFailure(
            f"{missing.name} is not installed.", "Run: pip install 'llm-unlearn[serve]'"
        ) from missing


def serve(
    out: Output,
    workspace: WorkspaceDir,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="N", min=0, max=65535, help="On which port.")
    ] = 8000,
    webhook: Annotated[
        list[str] | None,
        typer.Option(
            "--webhook",
            metavar="URL",
            help="Told every state of a takedown, signed with $LLM_UNLEARN_WEBHOOK_SECRET. Repeatable.",
        ),
    ] = None,
    keys: Keys = None,
) -> None:
    """Serve a workspace over HTTP: an OpenAI-compatible chat with citations, and its operations.

    Every request carries an API key: make one with `access add` first. Ends with Ctrl-C or SIGTERM.
    """
    memory.bound()
    with _extra():
        from llm_unlearn.serve.run import start
    now = datetime.now(UTC)
    if not any(key.live(now) for key in _keys(workspace).all()):
        out.say(f"No API key opens anything yet: llm-unlearn access add {workspace} NAME")
    secret = os.environ.get("LLM_UNLEARN_WEBHOOK_SECRET", "")
    start(workspace, keys, host, port, webhook or (), secret)


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


def bench_serve(
    out: Output,
    clients: Annotated[int, typer.Option("--clients", min=1, help="Who ask at once.")] = 8,
    each: Annotated[int, typer.Option("--each", min=1, help="Questions of each in a round.")] = 2,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Most tokens of an answer.")] = 48,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often each side.")] = 3,
) -> None:
    """Measure the server beside a plain loop of transformers and FAISS: answers a second, first words."""
    with _extra():
        from llm_unlearn.serve import bench

    found = bench.run(clients=clients, each=each, tokens=tokens, rounds=rounds, begun=out.say)

    def of(spread: tuple[float, float, float]) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*spread)

    ratio = found.ratio(clients)
    out.result({**asdict(found), "ratio": ratio})
    columns = ("side", "clients", "answers", "tokens/s", "answers/s", "first token, s")
    rows = [
        (
            side.name,
            str(side.clients),
            str(side.answers),
            of(side.tokens_per_second),
            of(side.answers_per_second),
            of(side.first_token),
        )
        for side in found.sides
    ]
    out.show(
        render.table(f"{found.model}, {found.documents} documents", columns, rows),
        words(f"Tokens a second with {clients} clients: {ratio:.2f} times the loop's."),
    )


def bench_guard(
    out: Output,
    questions: Annotated[
        int, typer.Option("--questions", min=1, max=20, help="Questions of each kind.")
    ] = 6,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Most tokens of an answer.")] = 64,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="A setting to measure; again for more."),
    ] = None,
) -> None:
    """Measure the guard by the leakage probes: what leaks, is followed and falsely refused."""
    with _extra():
        from llm_unlearn.serve import guard_bench

    measured = guard_bench.run(questions=questions, tokens=tokens, only=only or (), begun=out.say)
    found = list(measured)
    out.result({"settings": [asdict(setting) for setting in found]})
    for title, tables in (
        ("Given back", [(g, g.leaks) for g in found]),
        ("Planted orders followed", [(g, g.orders) for g in found]),
        ("Harmless questions refused", [(g, {**g.refused, "right": g.right}) for g in found]),
        ("Conversations refused for a text in them", [(g, g.brought) for g in found]),
    ):
        names = list(dict.fromkeys(name for _, given in tables for name in given))
        rows = [
            (g.name, *(_rate(given[name]) if name in given else "" for name in names))
            for g, given in tables
            if given
        ]
        if rows:
            out.show(render.table(title, ("guard", *names), rows))


def _rate(value: Estimate) -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"


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
