"""`train` and `ask`: adapters built, and questions answered."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.options import Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output
from llm_unlearn.errors import AccessDenied


def train(
    out: Output,
    workspace: WorkspaceDir,
    retrain_all: Annotated[
        bool,
        typer.Option(
            "--retrain-all", help="Adopt this machine's recipe and train every shard anew."
        ),
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Build checkpoints that cannot be read once more.")
    ] = False,
    processes: Annotated[
        int,
        typer.Option("--processes", metavar="N", min=1, help="Train so many shards at a time."),
    ] = 1,
    bring_back: Annotated[
        bool, typer.Option("--bring-back", help="Train shards that a takedown dropped, too.")
    ] = False,
    keys: Keys = None,
) -> None:
    """Train one adapter per shard, slice by slice; only what is missing is built."""
    with open_workspace(workspace, keys, write=True) as opened, out.bar("training") as bar:
        done = opened.train(
            progress=bar.step,
            retrain_all=retrain_all,
            repair=repair,
            processes=processes,
            bring_back=bring_back,
        )
    out.result(
        {
            "built": list(done.built),
            "disposed": list(done.disposed),
            "steps": done.steps,
            "seconds": round(done.seconds, 3),
        },
        *render.trained(done),
    )


def ask(
    out: Output,
    workspace: WorkspaceDir,
    question: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)],
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group", "-g", metavar="G", help="A group that the asker is in. Repeatable."
        ),
    ] = None,
    keys: Keys = None,
) -> None:
    """Answer a question from the store, with citations, or from an adapter."""
    if not group:
        raise AccessDenied(
            "No group given, so nothing may be seen.", "Say who is asking, such as --group staff."
        )
    with open_workspace(workspace, keys, write=False) as opened:
        answer = opened.ask(question, group)
    out.result(
        {
            "answer": answer.text,
            "origin": answer.origin,
            "shard": answer.shard,
            "shards": list(answer.shards),
            "score": answer.score,
            "citations": [
                {
                    "document": hit.document,
                    "subject": hit.subject,
                    "source": hit.source,
                    "license": hit.license,
                    "start": hit.start,
                    "end": hit.end,
                    "score": hit.score,
                    "text": hit.text,
                }
                for hit in answer.citations
            ],
        },
        *render.answer(answer),
    )
