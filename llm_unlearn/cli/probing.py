"""`probe` and `report`: what can still be pulled out about a subject, and its report as a page."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_unlearn.cli import render
from llm_unlearn.cli.options import Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from llm_unlearn.documents import Document
    from llm_unlearn.eval.cards import Report


def probe(
    out: Output,
    workspace: WorkspaceDir,
    subject: Annotated[
        str, typer.Option("--subject", "-s", metavar="S", help="Whom or what it is about.")
    ],
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts", metavar="FILE", help="Its documents, given again; default the live ones."
        ),
    ] = None,
    controls: Annotated[
        Path | None,
        typer.Option(
            "--controls", metavar="FILE", help="Documents like them that were never taken in."
        ),
    ] = None,
    never_had: Annotated[
        Path | None,
        typer.Option("--never-had", metavar="DIR", help="A workspace built without the subject."),
    ] = None,
    never_keys: Annotated[
        Path | None, typer.Option("--never-keys", metavar="DIR", help="Where its keys are now.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", "-g", metavar="G", help="Who asks store and chat. Repeatable."),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Also other wordings, 4 bits, the layers, an embedding attack."
        ),
    ] = False,
    target: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write the report here (JSON), outside of WS."
        ),
    ] = None,
    keys: Keys = None,
) -> None:
    """Ask for a subject's texts in every way known here, beside a model that never had them.

    The report quotes the texts: keep it as you would keep them.
    """
    from llm_unlearn.eval import cards
    from llm_unlearn.probing import open_beside, probe_subject

    _outside(target, workspace)
    given = None if texts is None else _read(texts)
    strangers = [] if controls is None else _read(controls)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_workspace(workspace, keys, write=False))
        other = None
        if never_had is not None:
            other = stack.enter_context(open_beside(opened, never_had, never_keys))
        report = probe_subject(
            opened,
            subject,
            given,
            controls=strangers,
            never_had=other,
            groups=group or (),
            deep=deep,
            told=out.say,
        )
    if target is not None:
        _write(target, cards.dump(report))
        out.say(f"{target} quotes the texts: keep it as you would keep them.")
    out.result(report.model_dump(mode="json"), *_shown(report))


def report(
    out: Output,
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT...", help="Reports of `probe`, in the order of time."),
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="One self-contained page.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="A table.")
    ] = None,
    comparison: Annotated[
        Path | None,
        typer.Option(
            "--comparison",
            metavar="FILE",
            help="The result.json of `compare`, whose frontier the page shows too.",
        ),
    ] = None,
) -> None:
    """Write reports of `probe` as a page or a table; several are moments, such as before and after."""
    from llm_unlearn.eval import cards

    read = [(path.stem, cards.load(path)) for path in reports]
    subjects = sorted({one.subject for _, one in read})
    if len(subjects) > 1:
        raise InputError(
            f"The reports are of different subjects: {', '.join(subjects)}.", "Give those of one."
        )
    if len({label for label, _ in read}) < len(read):
        raise InputError("Two reports have one file name.", "Rename one: it stands for the moment.")
    for path in (html, markdown):
        if path is not None and path.resolve() in {given.resolve() for given in reports}:
            raise InputError(f"{path} is one of the reports.", "Choose another name.")
    if comparison is not None and html is None:
        raise InputError("--comparison is drawn on a page.", "Give --html FILE too.")
    if html is not None:
        from llm_unlearn.eval import page

        _write(html, page.render(read, _frontier(comparison)).encode())
    if markdown is not None:
        _write(markdown, cards.markdown(read).encode())
    shown: list[RenderableType] = []
    if html is None and markdown is None:
        shown = [item for label, one in read for item in _shown(one, label)]
    out.result(
        {
            "subject": subjects[0],
            "reports": [
                {"name": label, "cards": [c.model_dump(mode="json") for c in one.cards]}
                for label, one in read
            ],
            "html": None if html is None else str(html),
            "markdown": None if markdown is None else str(markdown),
        },
        *shown,
    )


def _frontier(comparison: Path | None) -> str | None:
    if comparison is None:
        return None
    from llm_unlearn.experiments.summary import read_rows
    from llm_unlearn.experiments.table import frontier

    return frontier(read_rows(comparison))


def _read(path: Path) -> list[Document]:
    from llm_unlearn.readers import read_documents

    return list(read_documents(path))


def _outside(target: Path | None, workspace: Path) -> None:
    if target is not None and target.resolve().is_relative_to(workspace.resolve()):
        raise InputError(
            f"{target} lies inside the workspace, where no text may stand in the clear.",
            "Choose a place outside it.",
        )


def _write(path: Path, data: bytes) -> None:
    from llm_unlearn.files import write_atomic

    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder.", "Make it first.")
    write_atomic(path, data)


def _shown(report: Report, label: str = "") -> Sequence[RenderableType]:
    from llm_unlearn.eval.cards import shown

    columns = ("probe", *report.sides, "verdict")
    rows = [
        (card.title, *(shown(card.sides.get(side)) for side in report.sides), card.verdict)
        for card in report.cards
    ]
    title = f"{label + ': ' if label else ''}probes of {report.subject}"
    return [render.table(title, columns, rows), *(words(note) for note in report.notes)]
