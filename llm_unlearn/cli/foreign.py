"""`scan` and `import`: what another vector store holds and left behind, and bringing it in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.options import DryRun, Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output, words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm_unlearn.retrieval.foreign import Contents
    from llm_unlearn.retrieval.foreign.documents import Drawn

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="A folder of Chroma, LangChain's FAISS, LanceDB or Qdrant's local mode.",
        show_default=False,
    ),
]
TextKey = Annotated[
    str | None,
    typer.Option("--text-key", metavar="KEY", help="The field that holds a row's text."),
]
_SHOWN = 20  # refused documents named in one error


def scan(out: Output, path: Folder, text_key: TextKey = None) -> None:
    """Look at another vector store's folder: what is in it, and what its deleted rows left there.

    Reads only, prints no text, needs no workspace.
    """
    from llm_unlearn.retrieval.foreign import look

    contents = look(path, text_key)
    out.result(_value(contents), *_shown(contents))


def import_(
    out: Output,
    workspace: WorkspaceDir,
    path: Folder,
    text_key: TextKey = None,
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", "-c", metavar="NAME", help="Only this one; repeatable."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            "-g",
            metavar="KEY",
            help="The field that says which document a chunk is of.",
        ),
    ] = None,
    each_row: Annotated[
        bool, typer.Option("--each-row", help="Make every row a document of its own.")
    ] = False,
    subject_key: Annotated[
        str | None,
        typer.Option("--subject-key", metavar="KEY", help="The field that names the subject."),
    ] = None,
    acl_key: Annotated[
        str | None,
        typer.Option("--acl-key", metavar="KEY", help="The field that lists access groups."),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out what cannot be a document.")
    ] = False,
    dry_run: DryRun = False,
    keys: Keys = None,
) -> None:
    """Bring another vector store's live rows in as documents, all or none.

    Texts are embedded anew with this workspace's embedder. The old folder is not changed: at the
    end it is said what must still be destroyed there.
    """
    from llm_unlearn.errors import InputError
    from llm_unlearn.retrieval.foreign import documents, look

    # the workspace first: a wrong one should not cost a scan
    with open_workspace(workspace, keys, write=not dry_run) as opened, out.bar("documents") as bar:
        contents = look(path, text_key)
        wanted = documents.Keys(group, subject_key, acl_key, each_row)
        drawn = documents.draw(contents, wanted, tuple(collection or ()))
        if drawn.refused and not skip_broken:
            raise InputError(
                f"{len(drawn.refused)} documents cannot be brought in: {_named(drawn)}.",
                "Choose another --group or --each-row, or pass --skip-broken to take the rest.",
            )
        report = opened.ingest(drawn.documents, dry_run=dry_run, progress=bar.count)
    counts: Counter[str] = report.counts()
    if drawn.refused:
        out.say(f"left out {len(drawn.refused)} documents: {_named(drawn)}", "yellow")
    value: dict[str, object] = {
        "dry_run": dry_run,
        "rows": drawn.rows,
        "textless": drawn.textless,
        "broken": len(drawn.refused),
        "counts": {fate: counts[fate] for fate in ("store", "corpus", "refused", "known")},
        "old": _value(contents),
    }
    summary = (
        f"{drawn.rows} rows became {len(drawn.documents)} documents"
        + (f"; {drawn.textless} rows have no text and were left out" if drawn.textless else "")
        + ". Vectors were made anew, not taken over."
    )
    out.result(
        value,
        words(summary),
        *render.ingested(report, dry_run=dry_run, each=False),
        *_destroy(path, contents),
    )


def _named(drawn: Drawn) -> str:
    more = len(drawn.refused) - _SHOWN
    return "; ".join(drawn.refused[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _value(contents: Contents) -> dict[str, object]:
    return {
        "kind": contents.kind,
        "files": contents.files,
        "bytes": contents.bytes,
        "collections": [
            {
                "name": c.name,
                "rows": c.rows,
                "texts": c.texts,
                "vectors": c.vectors,
                "dim": c.dim,
                "keys": list(c.keys),
            }
            for c in contents.collections
        ],
        "left": {"texts": contents.texts_left, "vectors": contents.vectors_left},
        "leftovers": [
            {"file": left.file, "what": left.what, "texts": left.texts, "vectors": left.vectors}
            for left in contents.leftovers
        ],
        "unseen": list(contents.unseen),
    }


def _shown(contents: Contents) -> list[RenderableType]:
    rows = [
        (c.name, c.rows, c.rows - c.texts, c.vectors, c.dim or "-", ", ".join(c.keys) or "-")
        for c in contents.collections
    ]
    size = f"{contents.files} files, {contents.bytes} bytes"
    columns = ("collection", "live rows", "without text", "vectors", "dim", "metadata")
    shown: list[RenderableType] = [render.table(f"{contents.kind}: {size}", columns, rows)]
    return [*shown, *_left(contents)]


def _left(contents: Contents) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if contents.leftovers:
        rows = [(left.file, left.what, left.texts, left.vectors) for left in contents.leftovers]
        columns = ("file", "what", "texts", "vectors")
        shown.append(render.table("Left behind by deleted rows", columns, rows))
    else:
        shown.append(words("Nothing of deleted rows was found in these files."))
    shown.append(words("Not seen: " + "; ".join(contents.unseen) + ".", "dim"))
    return shown


def _destroy(path: Path, contents: Contents) -> list[RenderableType]:
    """What is still in the clear at the old place."""
    texts = sum(c.texts for c in contents.collections)
    told = (
        f"Still to be destroyed: {path} and every copy of it ({contents.files} files, "
        f"{contents.bytes} bytes, not encrypted), with {texts} live texts, "
        f"{contents.texts_left} texts and {contents.vectors_left} vectors of deleted rows."
    )
    return [*_left(contents), words(told, "yellow")]
