"""The demo's result in the terminal: the same figures as the report, in tables of 100 columns.

Guarantees: nothing from a document is read as markup or as a terminal's control sequence; a table
narrower than its text wraps. It quotes no removed text.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_unlearn.demo import figures
from llm_unlearn.demo.report import found, summary, verdict
from llm_unlearn.demo.result import DemoResult, Rate, Removal
from llm_unlearn.pages import clean

_WIDTH = 100
_STYLES = {"good": "bold green", "bad": "bold red", "none": "bold"}


def print_summary(result: DemoResult, console: Console) -> None:
    """Print the result: separation, training, answers, each takedown, claims and times."""
    _show(console, _plain(summary(result)))
    if result.separation:
        table = _table("What went where, and why", "Where", "Rule", "Reason", "Documents")
        for fate, rule, reason, count in result.separation:
            table.add_row(*_cells(figures.FATES.get(fate, fate), rule, reason, str(count)))
        _show(console, table)
    if result.shards:
        table = _table("Shards", "Shard", "Documents", "Slices", "Trained again in takedown")
        for shard, documents, slices in result.shards:
            turns = [
                str(turn)
                for turn, removal in enumerate(result.removals, start=1)
                if any(touched == shard for touched, _, _ in removal.shards)
            ]
            table.add_row(*_cells(shard, documents, slices, ", ".join(turns) or "-"))
        _show(console, table)
    rates = [(f"{title}: {one.name}", one) for title, ones in figures.known(result) for one in ones]
    rates += [(f"Unrelated (utility): {one.name}", one) for one in result.utility]
    rates += [(one.name, one) for one in result.rates]
    if rates:
        table = _table("Answers", "Questions", "Right", "Share", "95% interval")
        for name, one in rates:
            table.add_row(*_cells(name, *_rate(one)))
        _show(console, table)
    for turn, removal in enumerate(result.removals, start=1):
        _removal(console, turn, removal)
    if result.checks:
        table = _table("Claims", "Outcome", "Claim", "Figures")
        for check in result.checks:
            outcome = Text("held", "green") if check.held else Text("NOT HELD", "bold red")
            table.add_row(outcome, *_cells(check.claim, check.detail))
        _show(console, table)
    if result.timings:
        table = _table("Times", "Step", "Time")
        for step, took in result.timings:
            table.add_row(*_cells(step, figures.seconds(took)))
        table.add_row(*_cells("all steps", figures.seconds(sum(t for _, t in result.timings))))
        _show(console, table)
    style, sentence = verdict(result.checks)
    console.print(Text(sentence, _STYLES[style]))


def _removal(console: Console, turn: int, removal: Removal) -> None:
    _show(console, _plain(f"\nTakedown {turn}: {removal.title}", "bold"))
    count = figures.plural(len(removal.documents), "document")
    _show(console, _plain(f"{count} removed: {found(removal)}"))
    states = ", ".join(f"{state} {figures.seconds(at)}" for state, at in removal.states)
    _show(console, _plain(f"Seconds from the request: {states}"))
    _show(console, _plain(f"Receipt: {removal.receipt}"))
    for title, measures in figures.sides(removal.leaks):
        _leakage(console, title, measures)


def _leakage(console: Console, title: str, measures: list[figures.Series]) -> None:
    table = _table(title, "Moment", *(one.name for one in measures))
    for place, moment in enumerate(figures.MOMENTS):
        cells = []
        for one in measures:
            point = one.points[place]
            if point.estimate is None:
                cells.append("not measured")
                continue
            shown = figures.number(point.estimate.mean)
            if one.counted:
                shown = f"{int(sum(point.values))} of {len(point.values)}"
            spread = figures.interval(point.estimate, share=one.counted)
            cells.append(f"{shown}\n{spread}")
        table.add_row(*_cells(moment, *cells))
    _show(console, table)


def _rate(one: Rate) -> tuple[str, str, str]:
    share = figures.percent(one.right / one.total) if one.total else "none asked"
    return f"{one.right} of {one.total}", share, figures.interval(one, share=True)


def _table(title: str, first: str, *others: str) -> Table:
    """A table whose columns of figures are aligned to the right."""
    words = {"Rule", "Reason", "Claim", "Figures"}
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name in words else "right")
    return table


def _show(console: Console, what: Table | Text) -> None:
    if isinstance(what, Table):
        console.print()
    console.print(what, width=min(_WIDTH, console.width))


def _cells(*values: object) -> list[Text]:
    return [_plain(str(value)) for value in values]


def _plain(text: str, style: str = "") -> Text:
    return Text(clean(text), style)
