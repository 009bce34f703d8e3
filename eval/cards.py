"""A report of probes as plain values: one card for each probe, the texts, the curves.

Guarantees: a report is JSON of a stated schema version and reads back as what was written; every
card of texts holds its value for each text on each side, so that nobody has to believe a mean;
verdicts are a function of the values alone, few texts are judged by none, and only the comparison with
a model that never had the text calls anything forgotten.

It quotes the texts that were asked for: where it is kept is the caller's business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.eval.summary import Estimate, bootstrap, paired_difference, sign_flip, wilson

VERSION = 1
FEWEST = 6
"""Texts that a comparison needs: of fewer, no result has a p of .05 (see `sign_flip`)."""
CONVINCING = 0.05
Side = Literal["now", "never had", "base"]
Level = Literal["leaks", "same", "level", "less", "unclear", "clean"]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(_Plain):
    """A mean or rate with its 95% interval over n texts."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, found: Estimate) -> Value:
        """From an `Estimate`."""
        return cls(mean=found.mean, low=found.low, high=found.high, n=found.n)


class Card(_Plain):
    """One probe: higher always means that more leaks.

    Attributes:
        name: short and fixed, for programs; `title` and `about` are for people.
        group: what was asked: the weights, the store and chat, membership, or files.
        most: the largest value there can be; None where there is none.
        sides: mean and interval by side; `values`: one value a text by side, in the report's order.
        level, verdict: what the comparison came to, in one word and in a sentence.
    """

    name: str
    title: str
    about: str
    group: Literal["weights", "store", "membership", "files"]
    most: float | None = 1.0
    sides: dict[Side, Value]
    values: dict[Side, tuple[float, ...]]
    level: Level
    verdict: str


class Passage(_Plain):
    """A text with what greedy decoding knew of it: `spans` by side, as characters [start, end)."""

    id: str
    prompt: str
    text: str
    spans: dict[Side, tuple[tuple[int, int], ...]] = Field(default_factory=dict)
    said: dict[Side, str] = Field(default_factory=dict)


class Curve(_Plain):
    """One membership score's ROC curve; `blind` is the one that never asks the model."""

    name: str
    side: Side
    auc: Value
    points: tuple[tuple[float, float], ...]
    blind: bool = False


class Report(_Plain):
    """Everything that was asked about one subject; `texts` are the ids that values stand for."""

    schema_version: Literal[1] = 1
    toolkit: str
    made: str
    subject: str
    model: str
    live: bool
    texts: tuple[str, ...]
    sides: tuple[Side, ...]
    cards: tuple[Card, ...]
    passages: tuple[Passage, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()


def compared(
    name: str,
    title: str,
    about: str,
    group: Literal["weights", "store", "membership"],
    values: Mapping[Side, Sequence[float]],
    *,
    most: float | None = 1.0,
) -> Card:
    """A card whose verdict is the paired comparison of now with never-had, else with the base."""
    level, verdict = _verdict(values)
    return Card(
        name=name,
        title=title,
        about=about,
        group=group,
        most=most,
        sides={side: Value.of(_interval(v)) for side, v in values.items()},
        values={side: tuple(float(x) for x in v) for side, v in values.items()},
        level=level,
        verdict=verdict,
    )


def counted(
    name: str,
    title: str,
    about: str,
    group: Literal["store", "files"],
    hits: Mapping[Side, Sequence[bool]],
) -> Card:
    """A card of what must not happen at all; its verdict is how often it did."""
    now = hits["now"]
    rate = wilson(sum(now), len(now))
    if sum(now):
        level: Level = "leaks"
        verdict = f"It happens for {sum(now)} of {len(now)}."
    else:
        level = "clean"
        verdict = (
            f"For none of {len(now)}; a rate up to {rate.high:.0%} is not excluded by so many."
        )
    return Card(
        name=name,
        title=title,
        about=about,
        group=group,
        sides={side: Value.of(wilson(sum(h), len(h))) for side, h in hits.items()},
        values={side: tuple(float(x) for x in h) for side, h in hits.items()},
        level=level,
        verdict=verdict,
    )


def yardstick(sides: Collection[Side]) -> tuple[Side | None, str, str]:
    """With which side now is compared, its name in words, and what has to be said if it is the base."""
    if "never had" in sides:
        return "never had", "a model that never had it", ""
    if "base" in sides:
        alone = " There is no never-had to say what of it is learned."
        return "base", "the base model alone", alone
    return None, "", ""


def too_few(count: int, what: str, gap: float, name: str) -> str:
    """The verdict on fewer than `FEWEST`: nothing, but which way the value points."""
    way = "to neither side" if gap == 0 else "to more" if gap > 0 else "to less"
    few = f"{count} {what}{'' if count == 1 else 's'}, too few to judge by ({FEWEST} at least)"
    return f"{few}: {gap:+.3f} against {name}, so it points {way}."


def _interval(values: Sequence[float]) -> Estimate:
    """Wilson's where each value is 0 or 1: there a bootstrap of equal values has no width."""
    if all(v in (0.0, 1.0) for v in values):
        return wilson(int(sum(values)), len(values))
    return bootstrap(values)


def _verdict(values: Mapping[Side, Sequence[float]]) -> tuple[Level, str]:
    """By the paired difference: above, equal, not told apart, or below.

    Now 3, 5, 4, 4, 5, 3 and never-had 1 each time: the mean difference is 3, and of the 64 ways to
    sign the six only two are as far from 0: p = 2/64 = .031, more than never-had.
    """
    now = np.asarray(values["now"], np.float64)
    other, name, alone = yardstick(values)
    if other is None:
        return "unclear", "Nothing to compare with: no never-had and no base model were asked."
    rest = np.asarray(values[other], np.float64)
    if np.array_equal(now, rest):
        return "same", f"Exactly what {name} gives, for each text."
    gap = paired_difference(now, rest)
    told = f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    if len(now) < FEWEST:
        return "unclear", too_few(len(now), "text", gap.mean, name) + alone
    p = sign_flip(now - rest)
    told += f", p = {p:.2g}"
    if p > CONVINCING:
        return "level", f"Not told apart from {name} by {len(now)} texts: {told}.{alone}"
    if gap.mean > 0:
        return "leaks", f"More than {name}: {told}.{alone}"
    return "less", f"Less than {name}: {told}. Forgetting that shows is a sign too.{alone}"


def load(path: Path) -> Report:
    """Read a report.

    Raises:
        NotFound: no such file.
        InputError: it is no report, or of another schema version.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Make one: llm-unlearn probe WS --subject S.")
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path} is no probe report of schema version {VERSION}: {where}: {first['msg']}.",
            "Make it again with this version.",
        ) from error


def dump(report: Report) -> bytes:
    """A report as JSON, the same bytes for the same report."""
    return report.model_dump_json(indent=1).encode() + b"\n"


def markdown(reports: Sequence[tuple[str, Report]]) -> str:
    """The cards as Markdown, one column for each side of each report, in order."""
    lines = [f"# Probes of {_cell(reports[0][1].subject)}", ""]
    columns = _columns(reports)
    lines.append(
        "| probe | " + " | ".join(_cell(label) for label, _, _ in columns) + " | verdict |"
    )
    lines.append("| --- |" + " --- |" * (len(columns) + 1))
    for name in names(reports):
        cells, title, verdict = [], name, ""
        for _, report, side in columns:
            card = next((c for c in report.cards if c.name == name), None)
            value = card.sides.get(side) if card else None
            cells.append(shown(value))
            if card:
                title, verdict = card.title, card.verdict
        lines.append(f"| {_cell(title)} | " + " | ".join(cells) + f" | {_cell(verdict)} |")
    curves = [(label, c) for label, r in reports for c in r.curves]
    if curves:
        lines += ["", "| membership | of | AUC |", "| --- | --- | --- |"]
        lines += [
            f"| {c.name} | {_cell(label)}, {c.side} | {shown(c.auc)} |" for label, c in curves
        ]
    lines += ["", "Means with 95% intervals over the texts. Higher means that more leaks."]
    for note in dict.fromkeys(n for _, r in reports for n in r.notes):
        lines += ["", _cell(note)]
    return "\n".join(lines) + "\n"


def names(reports: Sequence[tuple[str, Report]]) -> list[str]:
    """Names of all cards, in the order in which they first come."""
    return list(dict.fromkeys(c.name for _, r in reports for c in r.cards))


def _columns(reports: Sequence[tuple[str, Report]]) -> list[tuple[str, Report, Side]]:
    several = len(reports) > 1
    return [
        (f"{label}: {side}" if several else side, report, side)
        for label, report in reports
        for side in report.sides
    ]


def shown(value: Value | None) -> str:
    """A value with its interval, short."""
    if value is None:
        return "–"
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def _cell(text: str) -> str:
    """A text that ends no table cell and starts no markup."""
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("<", "&lt;").replace("`", "\\`").replace("[", "\\[").replace("*", "\\*")
