"""The report: one HTML file that a lawyer and a researcher can both read.

Guarantees: the file is self-contained (its content security policy allows inline styles and data
images and nothing else, so it loads and runs nothing), the same result gives the same bytes, and
every text from a document or a model is escaped, with unprintable characters replaced. Written
whole or not at all, readable by its owner only.

It quotes removed text, and says so at its top: where the file is kept is the caller's business, and
it must be outside the workspace, since no takedown reaches it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm_unlearn.demo import figures, plots
from llm_unlearn.demo.result import Check, DemoResult, Knowledge, Removal
from llm_unlearn.files import write_atomic
from llm_unlearn.pages import templates
from llm_unlearn.takedown.receipt import LIMITS

STATES: Final = {
    "received": "Nothing serves what the request names.",
    "fenced": "Nothing serves the text any more; affected shards answer from their last clean "
    "checkpoint.",
    "deleted": "Its keys are destroyed, its rows removed.",
    "disposed": "Every checkpoint that knew it is gone.",
    "retrained": "The affected shards have learned the rest again, without it.",
    "receipted": "The signed receipt is written.",
}
HOW_FOUND: Final = {
    "requested": "named by the request",
    "exact": "the same letter for letter",
    "near-duplicate": "the same but for changes",
    "quotation": "quoting it at length",
    "paraphrase": "saying the same in other words",
}
ORIGINS: Final = {
    "store": "from the store",
    "adapter": "from an adapter",
    "base": "from the base model",
    "declined": "declined to answer",
}
LIMITS_HERE: Final = (
    "That another model, corpus or seed behaves like this one: the figures are of one training run "
    "on a corpus written for this demonstration. The intervals cover the choice of questions and "
    "documents, nothing else.",
    "That no other way of asking brings the text back: greedy answers and the probabilities of the "
    "exact text were measured, not every prompt or attack.",
)
"""What this demonstration leaves open besides what every receipt leaves open."""

_SAMPLE: Final = 3  # questions of each kind shown unfolded
_CHECKPOINT = re.compile(r"shard-(\d+)\..*")


@dataclass(frozen=True)
class Cell:
    """One slice of one shard: its losses and the takedowns (from 1) that had it retrained."""

    losses: tuple[float, ...]
    takedowns: tuple[int, ...]


def write_report(result: DemoResult, path: Path) -> Path:
    """Write the report of a demo to `path` (mode 0600) and return it.

    Raises:
        EnvironmentFailure: the disk is full.
        WorkspaceReadOnly: `path` cannot be written.
    """
    write_atomic(path, render(result).encode())
    return path


def render(result: DemoResult) -> str:
    """The report as HTML text."""
    return (
        templates("llm_unlearn.demo")
        .get_template("report.html.j2")
        .render(
            result=result,
            figures=figures,
            plots=plots,
            verdict=verdict(result.checks),
            summary=summary(result),
            tiles=tiles(result),
            separation=sorted(result.separation, key=lambda row: list(figures.FATES).index(row[0])),
            grid=grid(result),
            knowledge=[(title, *sample(result, kind)) for kind, title in figures.KINDS.items()],
            examples=examples,
            found=found,
            states=STATES,
            how_found=HOW_FOUND,
            origins=ORIGINS,
            limits=(*LIMITS, *LIMITS_HERE),
        )
    )


def verdict(checks: Sequence[Check]) -> tuple[str, str]:
    """A style (good, bad or none) and a sentence on what the checks came to."""
    failed = sum(not check.held for check in checks)
    if not checks:
        return "none", "No claim was checked."
    if failed:
        return "bad", f"{failed} of {figures.plural(len(checks), 'claim')} did not hold."
    every = "The one claim" if len(checks) == 1 else f"All {len(checks)} claims"
    return "good", f"{every} that {'was' if len(checks) == 1 else 'were'} checked held."


def summary(result: DemoResult) -> str:
    """What was done, in one paragraph, from the figures alone."""
    fates = figures.fates(result)
    said = [
        f"{figures.plural(sum(fates.values()), 'document')} went through a stated policy: "
        f"{fates['corpus']} were trained into {figures.plural(len(result.shards), 'adapter')} of "
        f"{result.model}, one adapter a shard; {fates['store']} were kept in an encrypted store "
        f"that only retrieval reads; {fates['refused']} were refused."
    ]
    if result.removals:
        removed = sum(len(removal.documents) for removal in result.removals)
        demands = len(result.removals)
        said.append(
            f"{'One demand' if demands == 1 else f'{demands} demands'} then took "
            f"{figures.plural(removed, 'document')} back."
        )
        fenced = [figures.state_seconds(removal, "fenced") for removal in result.removals]
        ready = [figures.state_seconds(removal, "receipted") for removal in result.removals]
        if times := [value for value in fenced if value is not None]:
            said.append(
                f"They were out of every answer {figures.seconds(max(times))} after the request"
            )
            done = [value for value in ready if value is not None]
            said[-1] += (
                f"; retraining and receipt were done after {figures.seconds(max(done))}."
                if done
                else "."
            )
    return " ".join(said)


def tiles(result: DemoResult) -> list[tuple[str, str, str]]:
    """The figures at the top, as (label, figure, what to compare it with)."""
    found = []
    labels = {"learned": "Learned questions right", "separated": "Separated questions right"}
    for kind, label in labels.items():
        if rates := figures.answered(result, kind):
            base, own = rates
            found.append(
                (
                    label,
                    f"{own.right} of {own.total}",
                    f"{figures.interval(own, share=True)}; base model {base.right} of {base.total}",
                )
            )
    leaks = [leak for removal in result.removals for leak in removal.leaks]
    for one in figures.series(leaks):
        before, _, after, never = (point.estimate for point in one.points)
        reference = figures.number(never.mean if never else None)
        if one.key == "probability" and before and after:
            found.append(
                (
                    "Removed text, word for word",
                    f"{figures.number(before.mean)} → {figures.number(after.mean)}",
                    f"verbatim probability; never had {reference}",
                )
            )
    held = sum(check.held for check in result.checks)
    found.append(("Claims that held", f"{held} of {len(result.checks)}", "each listed below"))
    return found


def grid(result: DemoResult) -> list[tuple[int, int, list[Cell | None]]]:
    """Shards by slices, as (shard, documents, cells); None where a shard has fewer slices."""
    width = max((slices for _, _, slices in result.shards), default=0)
    losses: dict[int, list[tuple[float, ...]]] = {}
    for name in sorted(result.losses):
        if match := _CHECKPOINT.fullmatch(name):
            losses.setdefault(int(match.group(1)), []).append(tuple(result.losses[name]))
    rows = []
    for shard, documents, slices in result.shards:
        curves = losses.get(shard, [])
        cells: list[Cell | None] = [
            Cell(curves[k] if k < len(curves) else (), _retrained(result.removals, shard, k))
            for k in range(slices)
        ]
        rows.append((shard, documents, cells + [None] * (width - slices)))
    return rows


def _retrained(removals: Sequence[Removal], shard: int, place: int) -> tuple[int, ...]:
    return tuple(
        turn
        for turn, removal in enumerate(removals, start=1)
        if any(touched == shard and place >= kept for touched, kept, _ in removal.shards)
    )


def sample(result: DemoResult, kind: str) -> tuple[list[Knowledge], list[Knowledge]]:
    """Questions of a kind: a few at even distances, whatever their answers, and all the others."""
    asked = [item for item in result.knowledge if item.kind == kind]
    places = {k * len(asked) // _SAMPLE for k in range(_SAMPLE)} if asked else set()
    chosen = [item for k, item in enumerate(asked) if k in places]
    return chosen, [item for k, item in enumerate(asked) if k not in places]


def examples(removal: Removal) -> tuple[list[figures.Asked], list[figures.Asked]]:
    """The first removed document of each fate, and all the others."""
    asked = figures.asked(removal)
    firsts = {item.fate: item for item in reversed(asked)}
    return [item for item in asked if item is firsts[item.fate]], [
        item for item in asked if item is not firsts[item.fate]
    ]


def found(removal: Removal) -> str:
    """How the documents of a removal were found, in words: `3 named by the request, ...`."""
    counts = Counter(how for _, _, how in removal.documents)
    return ", ".join(f"{number} {HOW_FOUND.get(how, how)}" for how, number in counts.items())
