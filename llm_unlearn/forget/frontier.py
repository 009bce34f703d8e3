"""The frontier of a sweep as a small SVG: what is still known against what is still good for.

Guarantees: the same records give the same bytes; no script, no font, no request to anywhere; all text is
escaped; light and dark from one drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from llm_unlearn.forget.result import Record

_STYLE = """
svg{--card:#fdfcfa;--line:#dedad2;--ink:#22262b;--muted:#5a626c;--good:#2f628f;--bad:#b9552b}
@media(prefers-color-scheme:dark){svg{--card:#171b1f;--line:#343a42;--ink:#e8e6e1;--muted:#a7afb9;
--good:#447dae;--bad:#bd6238}}
text{font-family:system-ui,sans-serif;font-size:12px;fill:var(--ink)}.t{fill:var(--muted)}
.h{font-size:15px;font-weight:600}.c{fill:var(--card);stroke:var(--line)}
.a{stroke:var(--line)}.p{fill:none;stroke:var(--muted);stroke-dasharray:3 3}
.forgotten,.partly{fill:var(--good)}.failed{fill:var(--bad)}
""".replace("\n", "")
_LEFT, _RIGHT, _TOP, _BASE = 60.0, 500.0, 60.0, 290.0


def frontier_svg(title: str, records: Sequence[Record]) -> str:
    """Forget probability to the right (0 to 1), utility as a share of the start upwards (0 to 1).

    The hollow dot is the start, the vertical line the target; orange dots lost utility, or stand where
    a run that diverged was last looked at. What had no utility measured is left out, which is said.
    """
    parts = [_text("h", _LEFT, 34, f"{title}: forgetting against utility")]
    for share in (0.0, 0.5, 1.0):
        parts.append(
            _line(_x(share), _TOP, _x(share), _BASE) + _line(_LEFT, _y(share), _RIGHT, _y(share))
        )
        parts.append(_text("t", _x(share), _BASE + 18, f"{share:g}", "middle"))
        parts.append(_text("t", _LEFT - 8, _y(share) + 4, f"{share:g}", "end"))
    parts.append(
        _text("t", (_LEFT + _RIGHT) / 2, _BASE + 38, "probability of the forgotten texts", "middle")
    )
    parts.append(_text("t", _LEFT - 8, _TOP - 10, "utility kept", "middle"))
    if records:
        aim = _x(records[0].target)
        parts.append(
            f'<line class="p" x1="{_n(aim)}" y1="{_n(_TOP)}" x2="{_n(aim)}" y2="{_n(_BASE)}"/>'
        )
        x, y = _x(records[0].before.forget), _y(1.0)
        parts.append(f'<circle class="p" cx="{_n(x)}" cy="{_n(y)}" r="5"/>')
    for record in records:
        useful = kept(record)
        if useful is None:
            continue
        x, y = _x(record.after.forget), _y(useful)
        diverged = record.stop == "diverged"
        kind = "failed" if diverged else record.verdict
        parts.append(f'<circle class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="5"/>')
        label = f"{record.settings.strength:g}" + (" (diverged)" if diverged else "")
        parts.append(_text("", x + 8, y - 6, label))
    if any(kept(record) is None for record in records):
        parts.append(_text("t", _LEFT + 8, _TOP + 16, "utility was not measured"))
    told = "; ".join(_told(record) for record in records)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 540 345" width="540" height="345" '
        f'role="img" aria-label="{escape(told)}"><style>{_STYLE}</style>'
        '<rect class="c" x=".5" y=".5" width="539" height="344" rx="12"/>'
        f"{''.join(parts)}</svg>\n"
    )


def kept(record: Record) -> float | None:
    """Utility after as a share of utility before; None when none was measured."""
    if record.after.utility is None or not record.before.utility:
        return None
    return record.after.utility / record.before.utility


def _told(record: Record) -> str:
    share = kept(record)
    said = "utility not measured" if share is None else f"{share:.2f} kept"
    ended = ", diverged" if record.stop == "diverged" else ""
    return f"strength {record.settings.strength:g}: {record.after.forget:.3g} known, {said}{ended}"


def _text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="a" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _x(share: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * min(1.0, max(0.0, share))


def _y(share: float) -> float:
    return _BASE - (_BASE - _TOP) * min(1.0, max(0.0, share))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
