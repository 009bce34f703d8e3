"""The figures that report, picture and terminal show, worked out once from a `DemoResult`.

Guarantees: the same result gives the same figures; every rate and mean comes with a 95% interval
(Wilson for counts, percentile bootstrap over documents for means); a value that was not measured or
is not finite is left out and never counted as zero. The intervals speak of other questions and
documents like these, not of another training run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llm_unlearn.demo.result import DemoResult, Leak, Rate, Removal
from llm_unlearn.eval.summary import Estimate, bootstrap, wilson

MOMENTS: Final = ("before", "at once", "after", "never had")
FATES: Final = {"corpus": "trained on", "store": "retrieval only", "refused": "refused"}
KINDS: Final = {
    "learned": "Learned subjects, from the adapters",
    "separated": "Separated text, from the store",
}
MEASURES: Final = {
    "returned": "Returned by retrieval",
    "probability": "Verbatim probability",
    "extraction": "Extraction strength",
    "rouge": "ROUGE-L recall",
}
SIDES: Final = {
    "store": "Kept in the store, answered by the chat",
    "corpus": "Trained on, answered by the adapter",
}


@dataclass(frozen=True)
class Point:
    """One measure at one moment: the single values and, if there are any, what they come to."""

    moment: str
    values: tuple[float, ...]
    estimate: Estimate | None


@dataclass(frozen=True)
class Series:
    """One measure at the four moments. `counted` when each value is a yes (1) or a no (0)."""

    key: str
    name: str
    points: tuple[Point, ...]
    counted: bool

    @property
    def documents(self) -> str:
        """How many documents the points stand on, such as `9 documents` or `7 to 9 documents`."""
        sizes = sorted(len(point.values) for point in self.points if point.values) or [0]
        most = plural(sizes[-1], "document")
        return most if sizes[0] == sizes[-1] else f"{sizes[0]} to {most}"


@dataclass(frozen=True)
class Asked:
    """One removed document at its moments."""

    document: str
    subject: str
    fate: str
    question: str
    expected: str
    leaks: tuple[Leak, ...]
    measures: tuple[str, ...]  # keys measured at any moment
    same: bool | None  # after retraining like never had, to the last figure; None if not compared


def rate(name: str, right: int, total: int) -> Rate:
    """A count out of at least one with its 95% Wilson interval."""
    estimate = wilson(right, total)
    return Rate(name, right, total, estimate.low, estimate.high)


def answered(result: DemoResult, kind: str) -> list[Rate]:
    """Questions of a kind answered right by the base model and by the workspace; [] if none."""
    asked = [item for item in result.knowledge if item.kind == kind]
    if not asked:
        return []
    return [
        rate("Base model", sum(item.base_right for item in asked), len(asked)),
        rate("Workspace", sum(item.right for item in asked), len(asked)),
    ]


def known(result: DemoResult) -> list[tuple[str, list[Rate]]]:
    """Questions answered right, as (heading, rates), for each kind that was asked."""
    groups = [(title, answered(result, kind)) for kind, title in KINDS.items()]
    return [(title, rates) for title, rates in groups if rates]


def series(leaks: Sequence[Leak]) -> list[Series]:
    """What the leaks come to: for each measure taken at any moment, its four points."""
    found = []
    for key, name in MEASURES.items():
        counted = key == "returned"
        points = []
        for moment in MOMENTS:
            values = tuple(
                value
                for leak in leaks
                if leak.moment == moment and (value := measured(leak, key)) is not None
            )
            estimate = None
            if values:
                estimate = wilson(int(sum(values)), len(values)) if counted else bootstrap(values)
            points.append(Point(moment, values, estimate))
        if any(point.values for point in points):
            found.append(Series(key, name, tuple(points), counted))
    return found


def sides(leaks: Sequence[Leak]) -> list[tuple[str, list[Series]]]:
    """The series of stored and of trained documents apart, as (heading, series); [] if none.

    A stored document comes back through the chat and a trained one through its adapter, so their
    figures do not share a mean.
    """
    stored = [leak for leak in leaks if leak.returned is not None]
    trained = [leak for leak in leaks if leak.returned is None]
    both = [(SIDES["store"], series(stored)), (SIDES["corpus"], series(trained))]
    return [(title, found) for title, found in both if found]


def measured(leak: Leak, key: str) -> float | None:
    """One value of a leak as a finite number, or None; a yes is 1 and a no is 0."""
    value = {
        "returned": leak.returned,
        "probability": leak.probability,
        "extraction": leak.extraction,
        "rouge": leak.rouge,
    }[key]
    return float(value) if value is not None and math.isfinite(value) else None


def asked(removal: Removal) -> list[Asked]:
    """The leaks of a removal by document, in the order in which they first come."""
    fates = {name: fate for name, fate, _ in removal.documents}
    grouped: dict[str, list[Leak]] = {}
    for leak in removal.leaks:
        grouped.setdefault(leak.document, []).append(leak)
    found = []
    for document, leaks in grouped.items():
        leaks.sort(key=lambda leak: MOMENTS.index(leak.moment))
        found.append(
            Asked(
                document=document,
                subject=leaks[0].subject,
                fate=FATES.get(fates.get(document, ""), ""),
                question=leaks[0].question,
                expected=leaks[0].expected,
                leaks=tuple(leaks),
                measures=tuple(
                    k for k in MEASURES if any(measured(x, k) is not None for x in leaks)
                ),
                same=_same(leaks),
            )
        )
    return found


def _same(leaks: Sequence[Leak]) -> bool | None:
    after, never = ([x for x in leaks if x.moment == moment] for moment in ("after", "never had"))
    if not after or not never:
        return None

    def seen(leak: Leak) -> tuple[object, ...]:
        return (leak.answer, *(measured(leak, key) for key in MEASURES))

    return [seen(leak) for leak in after] == [seen(leak) for leak in never]


def fates(result: DemoResult) -> dict[str, int]:
    """Documents by fate, in the order trained on, retrieval only, refused."""
    counts: Counter[str] = Counter()
    for fate, _, _, number in result.separation:
        counts[fate] += number
    return {fate: counts.get(fate, 0) for fate in FATES}


def state_seconds(removal: Removal, state: str) -> float | None:
    """Seconds from the request to a state, or None if it was not reached."""
    return dict(removal.states).get(state)


def number(value: float | None) -> str:
    """A figure in [0, 1] to three places; one that rounding would turn into 0 or 1 says so.

    >>> number(0.5), number(0.0), number(0.0001), number(0.9999), number(None)
    ('0.500', '0.000', '<0.001', '>0.999', 'not measured')
    """
    if value is None or not math.isfinite(value):
        return "not measured"
    text = f"{value:.3f}"
    if value > 0 and text == "0.000":
        return "<0.001"
    return ">0.999" if value < 1 and text == "1.000" else text


def percent(value: float) -> str:
    """A share as a percentage to one place.

    >>> percent(0.9097)
    '91.0%'
    """
    return f"{100 * value:.1f}%"


def seconds(value: float | None) -> str:
    """Seconds with their unit.

    >>> seconds(0.214), seconds(61.23), seconds(None)
    ('0.21 s', '61.2 s', 'not measured')
    """
    if value is None or not math.isfinite(value):
        return "not measured"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def plural(count: int, one: str, many: str = "") -> str:
    """A count and its noun.

    >>> plural(1, "document"), plural(2, "document")
    ('1 document', '2 documents')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def interval(estimate: Estimate | Rate, *, share: bool) -> str:
    """The 95% interval in words: `85.2 to 94.6%` as a share, else `0.912 to 0.975`."""
    if share:
        return f"{100 * estimate.low:.1f} to {percent(estimate.high)}"
    return f"{number(estimate.low)} to {number(estimate.high)}"
