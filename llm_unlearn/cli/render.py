"""Results as people read them: tables and short lists for the terminal. Nothing here decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from llm_unlearn.cli.output import words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llm_unlearn.answering import Answer
    from llm_unlearn.forget.result import Record
    from llm_unlearn.ingest import IngestReport
    from llm_unlearn.status import Status
    from llm_unlearn.takedown.verify import Verified
    from llm_unlearn.training import Trained

SHOWN = 600  # characters of a passage


def facts(pairs: Mapping[str, str]) -> Table:
    """Names and values, one pair a line; a value is never cut."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        grid.add_row(words(name), words(value))
    return grid


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Group:
    """A plain table under its title; columns of numbers are set right."""
    made = Table()
    body = [list(row) for row in rows]
    for at, name in enumerate(columns):
        numbers = bool(body) and all(isinstance(row[at], (int, float)) for row in body)
        made.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in body:
        made.add_row(*(words(str(cell)) for cell in row))
    return Group(words(title, "bold"), made)


def shorten(text: str, length: int = SHOWN) -> str:
    """A text on one line, cut with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ingested(report: IngestReport, *, dry_run: bool, each: bool) -> list[RenderableType]:
    """What went where and by which rule."""
    counts = report.counts()
    shown: list[RenderableType] = []
    if each:
        rows = [
            (
                p.id,
                p.subject,
                "known" if p.known else p.decision.fate,
                p.decision.rule,
                p.decision.reason,
            )
            for p in report.placed
        ]
        shown.append(table("Documents", ("id", "subject", "goes to", "rule", "reason"), rows))
    rules = [(*rule, number) for rule, number in sorted(report.rules().items())]
    if rules:
        shown.append(table("Separation", ("goes to", "rule", "reason", "documents"), rules))
    if counts["known"]:
        shown.append(words(f"{counts['known']} were here already, with the same words."))
    if dry_run:
        shown.append(words("A dry run: nothing was taken in.", "yellow"))
    return shown


def trained(done: Trained) -> list[RenderableType]:
    """What a training run built."""
    if not done.built and not done.disposed:
        return [words("Nothing to train: every shard is clean.")]
    text = f"{len(done.built)} checkpoints built in {done.steps} steps, {duration(done.seconds)}."
    if done.disposed:
        text += f" {len(done.disposed)} stale or unreadable ones disposed of."
    return [words(text)]


def answer(given: Answer) -> list[RenderableType]:
    """An answer, where it came from, and what it cites."""
    origin = {
        "store": f"from the store, cosine {given.score:.2f}",
        "adapter": f"from {_adapters(given.shards)}, cosine {given.score:.2f}",
        "base": "from the base model alone",
        "declined": "declined",
    }[given.origin]
    shown: list[RenderableType] = [words(given.text), words(origin, "dim")]
    if given.citations:
        rows = [
            (number, hit.document, hit.source, f"{hit.score:.2f}", shorten(hit.text, 300))
            for number, hit in enumerate(given.citations, start=1)
        ]
        shown.append(table("Citations", ("", "document", "source", "cosine", "passage"), rows))
    return shown


def _adapters(shards: Sequence[int]) -> str:
    if len(shards) == 1:
        return f"the adapter of shard {shards[0]}"
    return f"the adapters of shards {', '.join(map(str, shards))}"


def status(found: Status) -> list[RenderableType]:
    """A workspace as it stands."""
    counts = ", ".join(f"{n} {name}" for name, n in sorted(found.counts.items())) or "none"
    if found.waiting:
        counts += f" ({found.waiting} wait for train)"
    shown: list[RenderableType] = [
        facts(
            {
                "workspace": found.path,
                "keys": found.keys,
                "model": found.model,
                "embedder": found.embedder,
                "documents": counts,
                "generation": f"{found.generation} is open",
                "trained": "yes" if found.trained else "not yet",
            }
        )
    ]
    if found.shards:
        rows = [(s.shard, s.documents, s.slices, s.clean, s.state) for s in found.shards]
        shown.append(table("Shards", ("shard", "documents", "slices", "clean", "state"), rows))
    if found.takedowns:
        cases = [(number, state, receipt or "-") for number, state, receipt in found.takedowns]
        shown.append(table("Takedowns", ("number", "state", "receipt"), cases))
        if any(state != "receipted" for _, state, _ in found.takedowns):
            shown.append(words("Finish with: llm-unlearn resume", "yellow"))
    return shown


def verified(held: Verified, saved: str) -> list[RenderableType]:
    """What was checked, what the receipt says, and what it does not prove."""
    receipt = held.receipt
    deleted = receipt.done.documents_deleted
    scan = receipt.scan
    found = (
        "not scanned"
        if isinstance(scan, str)
        else f"{scan.findings} findings in {scan.files} files, {scan.bytes} bytes"
    )
    shown: list[RenderableType] = [
        table("The receipt holds", ("checked", "result"), held.lines),
        facts(
            {
                "outcome": receipt.outcome,
                "finished": receipt.times.finished,
                "deleted": f"{deleted.store} from the store, {deleted.corpus} from the corpus",
                "checkpoints": f"{len(receipt.done.checkpoints)} disposed of",
                "scan": found,
                "head": f"{saved}  (save it: --head notices a log that lost this receipt)",
            }
        ),
        words("It does not prove:", "bold"),
    ]
    return [*shown, *(words(f"- {line}") for line in receipt.does_not_prove)]


def forgotten(record: Record, folder: Path) -> list[RenderableType]:
    """How a forgetting run went, and what it does not mean."""
    said = {
        "forgotten": "forgotten, utility kept",
        "partly": "utility kept, the target was not reached",
        "unmeasured": "utility was not measured (give --utility or --retain), so it may be lost",
        "failed": "failed: utility lost",
    }[record.verdict]
    rows = [words(f"{record.method}: {said} ({record.stop}, {duration(record.seconds)}).")]
    for name in ("forget", "retain", "utility"):
        before, after = getattr(record.before, name), getattr(record.after, name)
        if before is not None:
            rows.append(words(f"  {name:<8} {before:.3f} before, {after:.3f} after"))
    rows.append(words(f"  target   {record.target:.3f}"))
    if record.verdict != "failed":
        rows.append(words(f"Written to {folder}, in the clear. This is no takedown and no proof."))
    return list(rows)


def frontier(records: Sequence[Record], folder: Path) -> list[RenderableType]:
    """A sweep as a table."""
    shown = [
        (
            r.settings.strength,
            r.verdict,
            *(
                "-" if value is None else round(value, 3)
                for value in (r.after.forget, r.after.retain, r.after.utility)
            ),
            r.stop,
            duration(r.seconds),
        )
        for r in records
    ]
    columns = ("strength", "verdict", "forget", "retain", "utility", "ended by", "time")
    made = table("Forgetting against utility (mean probability of the answers)", columns, shown)
    return [made, words(f"Records, frontier.json and frontier.svg are in {folder}.")]
