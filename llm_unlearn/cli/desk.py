"""`takedown list`, `show`, `submit`, `plan`, `approve`, `run`, ...: requests step by step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llm_unlearn.cli import planview, render
from llm_unlearn.cli.failures import UsageError
from llm_unlearn.cli.options import Keys, WorkspaceDir, open_workspace
from llm_unlearn.cli.outcomes import outcome_json, refuse_waiting, tell_all
from llm_unlearn.cli.output import Output, words
from llm_unlearn.errors import InputError
from llm_unlearn.files import write_atomic

if TYPE_CHECKING:
    from llm_unlearn.takedown.desk import Listed

Which = Annotated[
    str,
    typer.Argument(metavar="REQUEST", help="Its number, or the request's id.", show_default=False),
]
Sender = Annotated[
    str | None,
    typer.Option("--from", metavar="CONTACT", help="Whose id it is, where several use the same."),
]
Flagged = Annotated[
    bool, typer.Option("--include-flagged", help="Possible paraphrases go too: you looked.")
]
_MEANING = {
    "received": "fenced, waits for a decision",
    "approved": "fenced, waits for `takedown run`",
    "fenced": "being carried out",
    "refused": "its documents answer again",
    "withdrawn": "its documents answer again",
    "restored": "after a counter-notice: its text may come in again",
}


def submit(
    out: Output,
    workspace: WorkspaceDir,
    request: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A request file, of one or many.", show_default=False),
    ],
    keys: Keys = None,
) -> None:
    """File requests: what they name is fenced and acknowledged; then copies are found and fenced.

    Nothing is destroyed before somebody approves. A request that came before is passed over.
    """
    from llm_unlearn.takedown.request import read_requests

    requests = read_requests(request)
    with open_workspace(workspace, keys, write=True) as opened:
        told, copies = opened.desk.submit(
            requests, on_acknowledged=lambda a: out.say(f"acknowledged: takedown {a.number}")
        )
    out.result(
        {
            "known": len(requests) - len(told),
            "copies_fenced": copies,
            "acknowledged": [
                {
                    "number": a.number,
                    "id": a.id,
                    "acknowledged": a.acknowledged,
                    "fenced": a.fenced,
                    "due": a.due,
                    "reference": a.reference,
                }
                for a in told
            ],
        },
        render.table(
            "Acknowledged: no answer draws on what these name",
            ("number", "request", "documents fenced", "since", "due"),
            [(str(a.number), a.id, str(a.fenced), a.acknowledged, a.due or "") for a in told],
        ),
        words(f"Copies and possible copies fenced besides: {copies}"),
        words("For each claimant alone (it opens what the receipt keeps closed):"),
        *(words(f"  {a.reference}") for a in told),
    )


def list_(out: Output, workspace: WorkspaceDir, keys: Keys = None) -> None:
    """Every takedown: where it stands, and when it is due."""
    with open_workspace(workspace, keys, write=False) as opened:
        rows = opened.desk.all()
    out.result(
        {"takedowns": [_json(row) for row in rows]},
        render.table(
            "Takedowns",
            ("number", "state", "request", "from", "received", "due", "documents", "receipt"),
            [
                (
                    str(r.number),
                    r.state,
                    r.id or "",
                    r.sender or "",
                    r.received or "",
                    r.due or "",
                    "" if r.documents is None else str(r.documents),
                    r.receipt or "",
                )
                for r in rows
            ],
        ),
    )


def show(
    out: Output, workspace: WorkspaceDir, request: Which, sender: Sender = None, keys: Keys = None
) -> None:
    """One takedown with its request, while that is not destroyed."""
    with open_workspace(workspace, keys, write=False) as opened:
        row, case = opened.desk.show(request, sender)
    demand = None if case is None or case.request is None else case.request
    shown = _json(row) | {"request": demand.model_dump(mode="json") if demand else None}
    facts = {k: v for k, v in _json(row).items() if v is not None}
    if demand:
        facts |= {
            "basis": demand.basis,
            "claimant": demand.claimant.name,
            "capacity": demand.claimant.capacity,
            "work": demand.work,
            "subject": demand.subject or "",
            "ids": ", ".join(demand.ids),
            "source": demand.source or "",
            "passage": f"{len(demand.text)} characters" if demand.text else "",
        }
    meaning = _MEANING.get(row.state)
    out.result(
        shown,
        render.facts({k: str(v) for k, v in facts.items() if v != ""}),
        *([words(meaning)] if meaning else []),
    )


def plan(
    out: Output,
    workspace: WorkspaceDir,
    request: Which,
    sender: Sender = None,
    include_flagged: Flagged = False,
    keys: Keys = None,
) -> None:
    """What carrying a submitted request out would do: copies side by side, mentions, cost."""
    with open_workspace(workspace, keys, write=False) as opened:
        made = opened.desk.plan(request, sender, include_flagged=include_flagged)
        out.result({"plan": planview.as_json(made)}, *planview.shown(made, opened.opened))


def approve(
    out: Output,
    workspace: WorkspaceDir,
    request: Which,
    sender: Sender = None,
    decline: Annotated[
        list[str] | None,
        typer.Option("--decline", metavar="ID", help="Leave a document out. Repeatable."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the claimant.")
    ] = None,
    include_flagged: Flagged = False,
    keep_flagged: Annotated[
        bool, typer.Option("--keep-flagged", help="Possible paraphrases are none: you looked.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="ID", help="This possible paraphrase is none. Repeatable."),
    ] = None,
    after: Annotated[
        Literal["retrain", "rollback", "drop"],
        typer.Option("--after", help="As for `takedown`."),
    ] = "retrain",
    keys: Keys = None,
) -> None:
    """Accept a request, whole or in part. Its copies are fenced too; `run` carries it out."""
    from llm_unlearn.takedown.intake import Decision

    decision = Decision(tuple(decline or ()), reason, keep_flagged, tuple(keep or ()), after)
    with open_workspace(workspace, keys, write=True) as opened:
        row, made = opened.desk.approve(
            request, sender, decision=decision, include_flagged=include_flagged
        )
        out.result(
            _json(row) | {"plan": planview.as_json(made)},
            words(f"Takedown {row.number} is approved: {row.documents} documents go."),
            words(f"Carry it out with: llm-unlearn takedown run {shlex.quote(str(workspace))}"),
        )


def run(
    out: Output,
    workspace: WorkspaceDir,
    request: Annotated[
        list[str] | None, typer.Argument(metavar="[REQUEST]...", help="Default: all approved.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure leakage before, at once and after.")
    ] = False,
    keys: Keys = None,
) -> None:
    """Carry out approved requests together: every shard is retrained once."""
    with open_workspace(workspace, keys, write=True) as opened:
        with out.bar("retraining") as bar:
            outcomes = opened.desk.run(request or (), probe=probe, progress=bar.step)
        tell_all(out, opened, outcomes)


def refuse(
    out: Output,
    workspace: WorkspaceDir,
    request: Which,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the claimant.")],
    sender: Sender = None,
    keys: Keys = None,
) -> None:
    """Refuse a request, with the reason; what it fenced answers again."""
    with open_workspace(workspace, keys, write=True) as opened:
        row = opened.desk.refuse(request, reason, sender)
    out.result(_json(row), words(f"Takedown {row.number} is refused; its documents answer again."))


def withdraw(
    out: Output, workspace: WorkspaceDir, request: Which, sender: Sender = None, keys: Keys = None
) -> None:
    """End a request that its sender takes back, or forget a refused one; the request is destroyed."""
    with open_workspace(workspace, keys, write=True) as opened:
        number = opened.desk.withdraw(request, sender)
    out.result(
        {"number": number, "state": "withdrawn"},
        words(f"Takedown {number} is withdrawn and what it said is destroyed."),
    )


def restore(
    out: Output,
    workspace: WorkspaceDir,
    request: Which,
    documents: Annotated[
        Path | None,
        typer.Option("--documents", metavar="FILE", help="The text, supplied again: taken in."),
    ] = None,
    sender: Sender = None,
    keys: Keys = None,
) -> None:
    """After a counter-notice: let the text come in again, from whoever supplies it.

    Nothing comes back by itself: it was destroyed.
    """
    with open_workspace(workspace, keys, write=True) as opened:
        lifted = opened.desk.restore(request, sender)
        counts = dict(opened.ingest(documents).counts()) if documents is not None else {}
    out.result(
        {"lifted": lifted, "counts": counts},
        words(f"{lifted} tombstones lifted."),
        *([render.facts({k: str(v) for k, v in counts.items()})] if counts else []),
    )


def review(
    out: Output,
    workspace: WorkspaceDir,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="ID", help="No copy: it answers again. Repeatable."),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="ID", help="A copy: remove it. Repeatable."),
    ] = None,
    keys: Keys = None,
) -> None:
    """Possible copies that are fenced until somebody decides: list them, keep them, remove them."""
    from llm_unlearn.takedown.request import Request

    with open_workspace(workspace, keys, write=bool(keep or remove)) as opened:
        outcome = None
        there = {name for name, _, _ in opened.desk.under_review()}
        for name in remove or ():
            if name not in there:
                raise InputError(f"{name!r} is not under review.", "List what is first.")
            if name in (keep or ()):
                raise InputError(f"{name!r} is both kept and removed.", "Decide for one.")
        kept = opened.desk.keep(keep) if keep else 0
        if remove:
            demand = Request.internal(ids=remove, reason="found to be copies in review")
            with out.bar("retraining") as bar:
                outcome = opened.takedown(demand, probe=False, progress=bar.step)
        waiting = opened.desk.under_review()
        out.result(
            {
                "kept": kept,
                "removed": outcome_json(opened, outcome) if outcome else None,
                "waiting": [
                    {"id": name, "subject": subject, "takedown": number}
                    for name, subject, number in waiting
                ],
            },
            render.table(
                "Fenced until decided",
                ("document", "subject", "found by takedown"),
                [(n, s, "" if number is None else str(number)) for n, s, number in waiting],
            ),
        )
        if kept:
            out.say("Kept training documents are learned again by the next `train`.")
        if outcome:
            refuse_waiting([outcome])


def receipt(
    out: Output,
    workspace: WorkspaceDir,
    request: Which,
    sender: Sender = None,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page for the claimant, to print."),
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option("--proof", metavar="FILE", help="Write the proof of its place in the log."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="HEAD", help="The proof starts from this saved head."),
    ] = None,
    keys: Keys = None,
) -> None:
    """The receipt of a takedown: where it is, as a page for people, with the proof of its place."""
    from llm_unlearn.takedown.page import receipt_page
    from llm_unlearn.takedown.proof import parse_head

    if since is not None and proof is None:
        raise UsageError("--since says from where a proof starts: give --proof too.")
    with open_workspace(workspace, keys, write=False) as opened:
        path = opened.desk.receipt(request, sender)
        held = opened.verify(path)
        if page is not None:
            if page.exists():
                raise InputError(f"{page} is there already.", "Choose a new name.")
            write_atomic(page, receipt_page(held).encode(), mode=0o644)
        head = str(held.head)
        if proof is not None:
            head = str(opened.desk.prove(path, proof, parse_head(since) if since else None))
    out.result(
        {
            "receipt": str(path),
            "number": held.receipt.number,
            "outcome": held.receipt.outcome,
            "head": head,
            "html": str(page) if page else None,
            "proof": str(proof) if proof else None,
        },
        *render.verified(held, head),
    )


def _json(row: Listed) -> dict[str, object]:
    return {
        "number": row.number,
        "state": row.state,
        "id": row.id,
        "from": row.sender,
        "kind": row.kind,
        "received": row.received,
        "due": row.due,
        "documents": row.documents,
        "reason": row.reason,
        "receipt": row.receipt,
    }
