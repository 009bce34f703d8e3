"""A report of probes as one HTML file that a lawyer and a researcher can both read.

Guarantees: self-contained (its content security policy allows inline styles and nothing else); the
same reports give the same bytes; all text is escaped and unprintable characters are replaced; the
drawings are inline SVG with their figures in words for who cannot see them.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llm_unlearn.eval.cards import Card, Curve, Report, Side, Value, names, shown
from llm_unlearn.pages import clean, templates

WORDS = {
    "leaks": "Comes out",
    "same": "No difference",
    "level": "Not told apart",
    "less": "Less comes out",
    "unclear": "Open",
    "clean": "Does not happen",
}
GROUPS = {
    "weights": "What the weights give back",
    "store": "What the store and the chat give back",
    "membership": "Whether it can be told that the text was there",
    "files": "What is left in files",
}
SIDES = {"now": "This workspace", "never had": "Never had it", "base": "Base model alone"}


@dataclass(frozen=True)
class Row:
    """One side of a card in one report."""

    label: str
    side: Side
    value: Value


@dataclass(frozen=True)
class Shown:
    """One card with its rows over all reports; the verdict is that of the last report."""

    card: Card
    rows: tuple[Row, ...]


def render(reports: Sequence[tuple[str, Report]], frontier: str | None = None) -> str:
    """The reports of one subject as HTML; several are moments, such as before and after.

    Args:
        frontier: a comparison of ways of forgetting as SVG; it is shown as an image, so that nothing
            in it reaches the page.
    """
    last = reports[-1][1]
    cards = [_gathered(name, reports) for name in names(reports)]
    return (
        templates("llm_unlearn.eval")
        .get_template("page.html.j2")
        .render(
            reports=reports,
            last=last,
            groups=[
                (title, [c for c in cards if c.card.group == key]) for key, title in GROUPS.items()
            ],
            lead=headline(last.cards),
            some=" in the last of these reports" if len(reports) > 1 else "",
            words=WORDS,
            sides=SIDES,
            shown=shown,
            bar=bar,
            roc=roc,
            marked=marked,
            frontier=None if frontier is None else base64.b64encode(frontier.encode()).decode(),
            notes=list(dict.fromkeys(n for _, r in reports for n in r.notes)),
        )
    )


def headline(cards: Sequence[Card]) -> tuple[str, str]:
    """What all cards come to, as a colour (`leaks`, `unclear` or `none`) and in words.

    Good news (`none`) only where the weights were asked and every card was judged; what could not be told
    apart, or gives less, is counted beside it.
    """
    count: Counter[str] = Counter(c.level for c in cards)
    total = f"{len(cards)} probes"
    open_ = [
        f"{count[level]} {words}"
        for level, words in (
            ("unclear", "could not be judged"),
            ("level", "could not be told apart"),
            ("less", "give less than they should"),
        )
        if count[level]
    ]
    weighed = any(c.group == "weights" for c in cards)
    if not weighed:
        open_.append("the weights were not asked")
    colour, head = "none", f"None of {total} brings out more than it should"
    if count["leaks"]:
        colour, head = "leaks", f"{count['leaks']} of {total} bring something out"
    elif open_:
        head = f"None of {total} is seen to bring out more than it should"
        if count["unclear"] or not weighed:
            colour = "unclear"
    return colour, "; ".join([head, *open_])


def _gathered(name: str, reports: Sequence[tuple[str, Report]]) -> Shown:
    rows: list[Row] = []
    card: Card | None = None
    for label, report in reports:
        for found in report.cards:
            if found.name == name:
                card = found
                for side in report.sides:
                    if side in found.sides:
                        words = (
                            SIDES[side] if len(reports) == 1 else f"{label}: {SIDES[side].lower()}"
                        )
                        rows.append(Row(words, side, found.sides[side]))
    if card is None:
        raise AssertionError("a name without a card")
    return Shown(card, tuple(rows))


def bar(value: Value, most: float | None) -> Markup:
    """A dot at the mean with its interval, on a line from 0 to the largest value there can be."""
    top = most or max(value.high, 1e-9)
    at = [4 + 192 * min(1.0, max(0.0, x / top)) for x in (value.low, value.mean, value.high)]
    return Markup(
        '<svg class="bar" viewBox="0 0 200 14" role="img" aria-label="{}">'
        '<line class="axis" x1="4" y1="7" x2="196" y2="7"/>'
        '<line class="whisker" x1="{}" y1="7" x2="{}" y2="7"/>'
        '<circle class="dot" cx="{}" cy="7" r="4.5"/></svg>'
    ).format(shown(value), _n(at[0]), _n(at[2]), _n(at[1]))


def roc(curve: Curve) -> Markup:
    """A ROC curve: share of members found against share of others wrongly accused."""
    points = " ".join(f"{_n(28 + 160 * x)},{_n(170 - 160 * y)}" for x, y in curve.points)
    return Markup(
        '<svg class="roc" viewBox="0 0 200 200" role="img" aria-label="{}">'
        '<path class="axis" fill="none" d="M28 10V170H188"/>'
        '<line class="chance" x1="28" y1="170" x2="188" y2="10"/>'
        '<polyline class="{}" points="{}"/>'
        '<text x="108" y="192" text-anchor="middle">false accusations</text>'
        '<text x="14" y="90" text-anchor="middle" transform="rotate(-90 14 90)">members found</text>'
        "</svg>"
    ).format(
        f"ROC curve of {curve.name}, area {shown(curve.auc)}",
        "line blind" if curve.blind else "line",
        points,
    )


def marked(text: str, spans: Sequence[tuple[int, int]]) -> Markup:
    """The text with its spans in `<mark>`; spans may touch, and must not overlap."""
    parts, at = [], 0
    for start, end in sorted(spans):
        start, end = max(start, at), min(end, len(text))
        if end <= start:
            continue
        parts.append(Markup("{}").format(clean(text[at:start])))
        parts.append(Markup("<mark>{}</mark>").format(clean(text[start:end])))
        at = end
    parts.append(Markup("{}").format(clean(text[at:])))
    return Markup("").join(parts)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
