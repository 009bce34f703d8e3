"""A takedown's plan: as a table with copies side by side for people, as values for scripts.

The values hold no text: what a script logs of a removal must not keep what was removed.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llm_unlearn.cli.output import clean, words
from llm_unlearn.cli.render import SHOWN, duration, shorten, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm_unlearn.opened import Opened
    from llm_unlearn.takedown.plan import Plan, Planned

_DOCUMENTS = 50  # documents that the request names itself, shown at most
_PASSAGES = 3  # passages shown of one copy


def as_json(plan: Plan) -> dict[str, object]:
    """The plan as plain values: ids, kinds and places of shared passages, no text."""
    return {
        "removed": [_item(planned) for planned in plan.removed],
        "flagged": [_item(planned) for planned in plan.flagged],
        "mentions": [_item(planned) for planned in plan.mentions],
        "held": plan.held,
        "compared": plan.compared,
        "shards": [
            {"shard": s.shard, "kept": s.kept, "retrained": s.retrained, "steps": s.steps}
            for s in plan.shards
        ],
        "seconds": plan.seconds,
        "owed": [
            {"export": e.number, "shard": e.of, "where": e.where, "when": e.when} for e in plan.owed
        ],
    }


def _item(planned: Planned) -> dict[str, object]:
    passages = planned.match.passages if planned.match else ()
    return {
        "id": planned.id,
        "subject": planned.subject,
        "fate": planned.record.fate,
        "kind": planned.kind,
        "score": planned.score,
        "passages": [{"request": list(p.a), "document": list(p.b)} for p in passages],
    }


def shown(plan: Plan, opened: Opened) -> Iterator[RenderableType]:
    """The plan for people, the texts of copies beside what they were found by."""
    named = [planned for planned in plan.removed if planned.kind == "requested"]
    copies = [planned for planned in plan.removed if planned.kind != "requested"]
    kinds = Counter(planned.kind for planned in plan.removed)
    rows = [
        (p.kind, p.id, p.subject, p.record.fate, f"{p.score:.2f}")
        for p in [*named[:_DOCUMENTS], *copies]
    ]
    title = "To be removed for good: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    yield table(title, ("kind", "document", "subject", "lies in", "score"), rows)
    if len(named) > _DOCUMENTS:
        yield words(f"and {len(named) - _DOCUMENTS} more that the request names.")
    for planned in copies:
        if planned.kind != "exact":
            yield _beside(planned, plan.texts, opened)
    if plan.flagged:
        yield table(
            "Only alike, and left to people: fenced until decided (--include-flagged removes them too)",
            ("document", "subject", "cosine"),
            [(p.id, p.subject, f"{p.score:.2f}") for p in plan.flagged],
        )
        for planned in plan.flagged:
            yield _beside(planned, plan.texts, opened)
    if plan.mentions:
        yield table(
            "Documents of others that name the subject: look at them; they stay",
            ("document", "subject", "lies in"),
            [(p.id, p.subject, p.record.fate) for p in plan.mentions[:_DOCUMENTS]],
        )
        if len(plan.mentions) > _DOCUMENTS:
            yield words(f"and {len(plan.mentions) - _DOCUMENTS} more.")
    if plan.held:
        yield words(f"{plan.held} are under a legal hold: not used, and kept.")
    yield words(f"{plan.compared} other documents were compared.")
    if plan.owed:
        yield table(
            "Exported adapters that had learned them, and audit kits: destroy these yourself",
            ("export", "shard", "folder", "since"),
            [
                (str(e.number), "audit kit" if e.of is None else str(e.of), e.where, e.when)
                for e in plan.owed
            ],
        )
    for work in plan.shards:
        yield words(
            f"Shard {work.shard}: slices kept {work.kept}, trained again {work.retrained} "
            f"({work.steps} steps)."
        )
    if plan.shards:
        expected = "unknown before the first training"
        if plan.seconds is not None:
            expected = "about " + duration(plan.seconds)
        yield words(f"Expected time of retraining: {expected}.")
    else:
        yield words("No shard has learned from them: nothing is trained again.")


def summary(plans: Sequence[Plan], opened: Opened) -> Iterator[RenderableType]:
    """Many plans: a line for each, and what retraining them together takes."""
    from llm_unlearn.takedown.plan import joint_work

    yield table(
        "To be removed for good",
        ("request", "documents", "copies", "to review", "held"),
        [
            (
                plan.request.id,
                str(len(plan.removed)),
                str(sum(p.kind != "requested" for p in plan.removed)),
                str(len(plan.flagged)),
                str(plan.held),
            )
            for plan in plans[:_DOCUMENTS]
        ],
    )
    if len(plans) > _DOCUMENTS:
        yield words(f"and {len(plans) - _DOCUMENTS} more requests.")
    shards, seconds = joint_work(opened, plans)
    steps = sum(shard.steps for shard in shards)
    expected = "unknown before the first training" if seconds is None else duration(seconds)
    yield words(f"{len(shards)} shards are retrained, each once ({steps} steps): {expected}.")


def _beside(planned: Planned, texts: Sequence[str], opened: Opened) -> Group:
    """What the request and one document have in common, side by side, differences marked."""
    made = Table(show_lines=True, expand=True)
    made.add_column("request", ratio=1, overflow="fold")
    made.add_column("document", ratio=1, overflow="fold")
    shown: list[RenderableType] = [
        words(f"{planned.id}: {planned.kind}, {planned.score:.2f}", "bold"),
        made,
    ]
    match = planned.match
    if match is None:
        raise AssertionError("a copy was found by comparing it")
    # a paraphrase is close to all of the request together, to none of its texts by itself
    wanted = texts[match.text] if match.text is not None else "\n".join(texts)
    found = opened.document(planned.record).content
    spans = [(p.a, p.b) for p in match.passages[:_PASSAGES]]
    for a, b in spans or [((0, len(wanted)), (0, len(found)))]:
        made.add_row(*_marked(shorten(wanted[slice(*a)], SHOWN), shorten(found[slice(*b)], SHOWN)))
    if len(match.passages) > _PASSAGES:
        shown.append(words(f"and {len(match.passages) - _PASSAGES} more passages"))
    return Group(*shown)


def _marked(a: str, b: str) -> tuple[Text, Text]:
    """Two texts in which the words that differ are underlined, if most of them are the same."""
    left, right = clean(a).split(" "), clean(b).split(" ")
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    texts = Text(), Text()
    alike = matcher.ratio() >= 0.5
    for kind, a1, a2, b1, b2 in matcher.get_opcodes():
        style = "bold underline" if alike and kind != "equal" else ""
        for text, part in ((texts[0], left[a1:a2]), (texts[1], right[b1:b2])):
            if part:
                text.append((" " if text else "") + " ".join(part), style)
    return texts
