"""Plots as small hand-made SVG: same figures, same bytes, light and dark from one drawing.

Guarantees: no script, no font, no request to anywhere; colours come from style sheet classes, so a
plot inside the report follows its scheme and the stand-alone picture carries both. All text is
escaped. Bars are means (or counts), whiskers 95% intervals, dots single documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from markupsafe import Markup

from llm_unlearn.demo import figures
from llm_unlearn.demo.figures import Series, known, number, percent
from llm_unlearn.demo.result import DemoResult, Rate
from llm_unlearn.files import write_atomic
from llm_unlearn.pages import clean

WIDTH: Final = 256
HEIGHT: Final = 172
_BASE, _TOP, _LEFT = 142.0, 26.0, 26.0  # y of 0, y of 1, x of the axis, in SVG units
_BAND: Final = (WIDTH - _LEFT) / 4
_TONES: Final = {"before": "warm", "at once": "cool", "after": "cool", "never had": "hollow"}

_PICTURE_STYLE: Final = Markup("""
svg{--card:#fdfcfa;--line:#dedad2;--ink:#22262b;--muted:#5a626c;--bar-warm:#b9552b;
--bar-cool:#2f628f;--quiet:#a9aeb5}
@media(prefers-color-scheme:dark){svg{--card:#171b1f;--line:#343a42;--ink:#e8e6e1;--muted:#a7afb9;
--bar-warm:#bd6238;--bar-cool:#447dae;--quiet:#6f7781}}
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;
fill:var(--ink)}
.card{fill:var(--card);stroke:var(--line)}.head{font-size:17px;font-weight:600}
.sub{font-size:13px;fill:var(--muted)}.name{font-size:14px;font-weight:600}.row{font-size:13px}
""")
PLOT_STYLE: Final = Markup("""
.axis{stroke:var(--line);stroke-width:1}.tick{font-size:11px;fill:var(--muted)}
.value{font-size:12.5px;font-weight:600;fill:var(--ink);font-variant-numeric:tabular-nums}
.warm{fill:var(--bar-warm)}.cool{fill:var(--bar-cool)}.quiet{fill:var(--quiet)}
.hollow{fill:none;stroke:var(--muted);stroke-width:1.4;stroke-dasharray:3 2}
.whisker{stroke:var(--ink);stroke-width:1.3}.dot{fill:var(--ink);fill-opacity:.45}
""")


def panel(one: Series) -> Markup:
    """One measure at the four moments, as SVG groups inside WIDTH x HEIGHT units."""
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _y(share)
        parts.append(
            Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                _n(_LEFT), _n(y), WIDTH, _n(y)
            )
            + _text("tick", _LEFT - 5, y + 4, f"{share:g}", "end")
        )
    for place, point in enumerate(one.points):
        middle = _LEFT + (place + 0.5) * _BAND
        parts.append(_text("tick", middle, _BASE + 17, point.moment, "middle"))
        if point.estimate is None:
            parts.append(_text("tick", middle, _BASE - 6, "–", "middle"))
            continue
        mean = point.estimate.mean
        top = min(_y(mean), _BASE - 1.5)
        parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="24" height="{}" rx="2"/>').format(
                _TONES[point.moment], _n(middle - 14), _n(top), _n(_BASE - top)
            )
        )
        dots = () if one.counted else point.values
        parts.extend(_dots(middle, dots))
        low, high = _y(point.estimate.low), _y(point.estimate.high)
        parts.append(
            Markup('<path class="whisker" fill="none" d="M{0} {1}h8m-4 0V{2}m-4 0h8"/>').format(
                _n(middle - 6), _n(low), _n(high)
            )
        )
        highest = min(high, top, *map(_y, dots))
        value = f"{int(sum(point.values))}/{len(point.values)}" if one.counted else number(mean)
        parts.append(_text("value", middle - 2, highest - 6, value, "middle"))
    return Markup("").join(parts)


def _dots(middle: float, values: Sequence[float]) -> list[Markup]:
    """Single documents beside the bar, spread over three columns so that equal ones show."""
    return [
        Markup('<circle class="dot" cx="{}" cy="{}" r="1.8"/>').format(
            _n(middle + 14.5 + 3.5 * (place % 3)), _n(_y(value))
        )
        for place, value in enumerate(values)
    ]


def panel_svg(one: Series) -> Markup:
    """A panel as an inline `<svg>` that says in words what it shows."""
    told = "; ".join(
        f"{point.moment} {number(point.estimate.mean) if point.estimate else 'not measured'}"
        for point in one.points
    )
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{one.name}: {told}", panel(one)
    )


def sparkline(values: Sequence[float]) -> Markup:
    """A loss curve without axes, stretched to its box: from its largest value down to zero."""
    top = max((value for value in values), default=0.0) or 1.0
    last = max(1, len(values) - 1)
    points = " ".join(
        f"{_n(100 * place / last)},{_n(30 - 28 * max(0.0, value) / top)}"
        for place, value in enumerate(values)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
        '<polyline points="{}" vector-effect="non-scaling-stroke"/></svg>'
    ).format(points)


def demo_picture(result: DemoResult, path: Path) -> Path:
    """Write the README's picture: what removed documents still give back, and what is answered.

    One SVG, 880 units wide, on a card of its own so that it reads on any page.
    """
    leaks = [leak for removal in result.removals for leak in removal.leaks]
    parts = [
        _text("head", 28, 40, "What still comes back of the removed documents"),
        _text(
            "sub",
            28,
            60,
            "Before the takedown, at once (fenced and rolled back), after retraining, and in a "
            "build that never had them.",
        ),
    ]
    # three panels keep the letters readable; the report has the other measures
    picked = {
        figures.SIDES["store"]: {"returned"},
        figures.SIDES["corpus"]: {"probability", "rouge"},
    }
    shown = [
        one for title, ones in figures.sides(leaks) for one in ones if one.key in picked[title]
    ]
    for place, one in enumerate(shown):
        x = 22 + place * 288
        parts.append(
            _text("name", x + 4, 94, one.name)
            + Markup('<g transform="translate({} 98)">{}</g>').format(x, panel(one))
        )
    y = 98.0 + HEIGHT + 36
    parts.append(_text("head", 28, y, "Questions answered right"))
    y += 12
    utility = [("Unrelated to the corpus (utility)", result.utility)] if result.utility else []
    for title, rates in [*known(result), *utility]:
        y += 24
        parts.append(_text("name", 28, y, title))
        for one_rate in rates:
            y += 24
            parts.append(_rate_row(one_rate, y))
        y += 6
    parts.append(_text("sub", 28, y + 26, "Whiskers: 95% intervals. Dots: single documents."))
    height = round(y + 46)
    drawing = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" width="880" '
        'height="{height}" role="img" aria-labelledby="t"><title id="t">{title}</title>'
        '<style>{style}</style><rect class="card" x=".5" y=".5" width="879" height="{inner}" '
        'rx="14"/>{parts}</svg>\n'
    ).format(
        height=height,
        inner=height - 1,
        title="Leakage of removed documents at four moments, and questions answered right",
        style=_PICTURE_STYLE + PLOT_STYLE,
        parts=Markup("").join(parts),
    )
    write_atomic(path, str(drawing).encode(), mode=0o644)
    return path


def _rate_row(one: Rate, y: float) -> Markup:
    left, width = 290.0, 400.0
    share = one.right / one.total if one.total else 0.0
    tone = "quiet" if one.name.lower().startswith("base") else "cool"
    return (
        _text("row", 40, y, one.name)
        + Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            _n(left), _n(y - 4.5), _n(left + width), _n(y - 4.5)
        )
        + Markup('<rect class="{}" x="{}" y="{}" width="{}" height="13" rx="2"/>').format(
            tone, _n(left), _n(y - 11), _n(max(1.5, share * width))
        )
        + Markup('<path class="whisker" fill="none" d="M{} {}v8m0 -4H{}m0 -4v8"/>').format(
            _n(left + one.low * width), _n(y - 8.5), _n(left + one.high * width)
        )
        + _text("row", left + width + 16, y, f"{one.right} of {one.total} ({percent(share)})")
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, _n(x), _n(y), anchor, clean(text)
    )


def _y(share: float) -> float:
    return _BASE - (_BASE - _TOP) * min(1.0, max(0.0, share))


def _n(value: float) -> str:
    """A coordinate, short and the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")
