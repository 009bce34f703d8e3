"""The results of `hardness` as Markdown and as one scatter plot. Pure functions of plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
svg{--card:#fdfcfa;--line:#dedad2;--ink:#22262b;--muted:#5a626c;--a:#b9552b;--b:#2f628f;--c:#5d7f36}
@media(prefers-color-scheme:dark){svg{--card:#171b1f;--line:#343a42;--ink:#e8e6e1;--muted:#a7afb9;
--a:#d98557;--b:#6ea3d0;--c:#9cc06e}}
text{font-family:system-ui,sans-serif;font-size:12px;fill:var(--ink)}.t{fill:var(--muted)}
.h{font-size:14px;font-weight:600}.card{fill:var(--card);stroke:var(--line)}.l{stroke:var(--line)}
.k0{fill:var(--a)}.k1{fill:var(--b)}.k2{fill:var(--c)}
""".replace("\n", "")
_LEFT, _RIGHT, _TOP, _BASE = 64.0, 500.0, 84.0, 320.0


def markdown(plain: Mapping[str, Any]) -> str:
    """Means by kind, and rank correlations with intervals."""
    kinds = plain["kinds"]
    columns = [name for name in next(iter(kinds.values())) if not name.endswith("censored")]
    lines = [
        "| kind | " + " | ".join(columns) + " | never reached |",
        "| " + " | ".join("---" for _ in range(len(columns) + 2)) + " |",
    ]
    for kind, values in kinds.items():
        cells = [_mean(values[name]) for name in columns]
        censored = f"{values['steps censored']:.2f}, {values['strength censored']:.2f}"
        lines.append(f"| {kind} | " + " | ".join([*cells, censored]) + " |")
    outcomes = plain["correlations"]
    predictors = list(next(iter(outcomes.values())))
    lines += [
        "",
        "± standard error over facts. Never reached: share of facts whose probability never fell to "
        f"{plain['config']['target']:g}, by steps and by strength; they count with the most tried. "
        "Collateral: share of the neighbours' probability that was lost.",
        "",
        "| Spearman's rho with | " + " | ".join(predictors) + " |",
        "| " + " | ".join("---" for _ in range(len(predictors) + 1)) + " |",
    ]
    for outcome, values in outcomes.items():
        cells = [
            f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]"
            for v in (values[name] for name in predictors)
        ]
        lines.append(f"| {outcome} | " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", "95% bootstrap intervals over facts; 0 where one side did not vary.", ""]
    )


def _mean(value: Mapping[str, float | None]) -> str:
    error = value["standard_error"]
    return f"{value['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def drawing(plain: Mapping[str, Any]) -> str:
    """A dot a fact: base probability to the right (logarithmic), steps needed upwards."""
    facts = plain["facts"]
    kinds = list(plain["kinds"])
    most = max(1.0, *(f["steps"] for f in facts))
    logs = [math.log10(max(f["base probability"], 1e-9)) for f in facts]
    low = math.floor(min(logs))
    rho = plain["correlations"]["steps"]["base probability"]
    title = "Steps to forget a fact against what the base model knew of it"
    told = f"Spearman's rho {rho['mean']:.2f} [{rho['low']:.2f}, {rho['high']:.2f}]"
    parts = [_text("h", 24, 30, title), _text("t", 24, 50, told)]
    for power in range(low, 1):
        x = _LEFT + (_RIGHT - _LEFT) * (power - low) / max(1, -low)
        parts.append(f'<path class="l" d="M{_n(x)} {_n(_TOP)}V{_n(_BASE)}"/>')
        parts.append(_text("t", x, _BASE + 18, f"{10.0**power:g}", "middle"))
    for share in (0.0, 0.5, 1.0):
        y = _BASE - (_BASE - _TOP) * share
        parts.append(f'<path class="l" d="M{_n(_LEFT)} {_n(y)}H{_n(_RIGHT)}"/>')
        parts.append(_text("t", _LEFT - 8, y + 4, f"{most * share:g}", "end"))
    for fact, log in zip(facts, logs, strict=True):
        x = _LEFT + (_RIGHT - _LEFT) * (log - low) / max(1, -low)
        y = _BASE - (_BASE - _TOP) * fact["steps"] / most
        tone = kinds.index(fact["kind"]) % 3
        parts.append(f'<circle class="k{tone}" cx="{_n(x)}" cy="{_n(y)}" r="4.5"/>')
    for place, kind in enumerate(kinds):
        x = _LEFT + 130 * place
        parts.append(f'<circle class="k{place % 3}" cx="{_n(x)}" cy="374" r="4.5"/>')
        parts.append(_text("", x + 10, 378, kind))
    parts.append(
        _text("t", (_LEFT + _RIGHT) / 2, _BASE + 36, "probability in the base model", "middle")
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 540 390" width="540" height="390" '
        f'role="img" aria-label="{escape(title + ": " + told)}"><style>{_STYLE}</style>'
        '<rect class="card" x=".5" y=".5" width="539" height="389" rx="12"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
