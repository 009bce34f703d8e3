"""The table as Markdown, the frontier as SVG, everything as JSON.

Guarantees: pure functions of the rows; the same rows give the same bytes. The drawing has no script and
no font, and reads in light and dark.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from llm_unlearn.eval.summary import bootstrap
from llm_unlearn.experiments.compare import Comparison
from llm_unlearn.experiments.summary import Metric, Row, plain
from llm_unlearn.files import write_atomic

_COLUMNS = (
    ("quality", "forget quality"),
    ("forgotten: p", "forget probability"),
    ("ROUGE", "forget rouge"),
    ("choice", "forget best of wordings"),
    ("extraction", "extraction strength"),
    ("comes out", "comes out within tries"),
    ("membership", "membership distance"),
    ("relearned", "relearned"),
    ("8 bits", "8 bits"),
    ("4 bits", "4 bits"),
    ("attack", "attack"),
    ("no trigger", "attack without trigger"),
    ("retained: p", "retain probability"),
    ("ROUGE", "retain rouge"),
    ("choice", "retain best of wordings"),
    ("mmlu", "mmlu choice"),
    ("wmdp", "wmdp choice"),
    ("utility", "utility"),
    ("s", "seconds"),
    ("tokens", "tokens"),
)
_STYLE = """
svg{--card:#fdfcfa;--line:#dedad2;--ink:#22262b;--muted:#5a626c;--good:#2f628f;--bad:#b9552b}
@media(prefers-color-scheme:dark){svg{--card:#171b1f;--line:#343a42;--ink:#e8e6e1;--muted:#a7afb9;
--good:#6ea3d0;--bad:#d98557}}
text{font-family:system-ui,sans-serif;font-size:11px;fill:var(--ink)}.t{fill:var(--muted)}
.h{font-size:13px;font-weight:600}.c{fill:var(--card);stroke:var(--line)}
.a{stroke:var(--line)}.k{stroke:var(--line);fill:none}.w{stroke:var(--muted)}.good{fill:var(--good)}.bad{fill:var(--bad)}
.ref{fill:none;stroke:var(--ink);stroke-width:1.5}.exact{fill:var(--ink)}.hide{fill:var(--muted)}
""".replace("\n", "")
_WIDTH, _PANEL, _LEFT, _TOP, _BASE = 380.0, 420.0, 46.0, 74.0, 340.0
_KIND = {"taught": "ref", "never-had": "ref", "exact": "exact", "front": "hide"}


def write(found: Comparison, made: Sequence[Row], out: Path) -> None:
    """Write `table.md`, `frontier.svg` and `result.json`."""
    text = json.dumps(plain(found, made), indent=1) + "\n"
    write_atomic(out / "result.json", text.encode(), mode=0o644)
    write_atomic(out / "table.md", markdown(found, made).encode(), mode=0o644)
    write_atomic(out / "frontier.svg", frontier(made).encode(), mode=0o644)


def markdown(found: Comparison, made: Sequence[Row]) -> str:
    """One table; a column that no row has is left out."""
    used = [(title, key) for title, key in _COLUMNS if any(key in row.metrics for row in made)]
    head = ["side", "row", "verdict", "comes back", "forgotten", "utility kept"]
    lines = [
        "| " + " | ".join([*head, *(title for title, _ in used)]) + " |",
        "| " + " | ".join("---" for _ in (*head, *used)) + " |",
    ]
    for row in made:
        cells = [
            row.side,
            row.name,
            row.verdict,
            ", ".join(row.returns) or "–",
            _share(row.forgotten),
            _share(row.kept),
            *(_number(row.metrics.get(key), key) for _, key in used),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = len(found.config.seeds)
    over = f"{seeds} seeds" if seeds > 1 else "texts (one seed)"
    equal = "equals" if not found.unequal() else "DIFFERS from"
    lines += [
        "",
        f"± standard error over {over}. SISA deletion and naive retraining: every value {equal} that "
        "of never-had, which was built by itself.",
        f"{found.about['documents']} documents, {found.about['asked to forget']} asked to be "
        f"forgotten. Quality: p of a KS test of truth ratios against never-had. Comes out: chance "
        f"within {found.config.probes.tries} samples. Membership: distance of the AUC to "
        "never-had's. Relearned: probability of the other half after training on one half.",
        "",
    ]
    lines += _finding(found.about.get("finding", {}))
    return "\n".join(lines)


def _finding(by_seed: dict[str, dict[str, Any]]) -> list[str]:
    """How well planted documents are found, if any were planted."""
    if not by_seed:
        return []
    first = next(iter(by_seed.values()))
    lines = [
        f"Finding the {first['planted']} planted of {first['documents']} documents, after "
        f"{first['seen']} bad answers were seen:",
        "",
        "| by | recall among as many | AUC |",
        "| --- | --- | --- |",
    ]
    for name in ("influence", "agreement"):
        own = [each[name] for each in by_seed.values() if name in each]
        if own:
            cells = [_over([each[what] for each in own]) for what in ("recall", "auc")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    by_chance = first["planted"] / first["documents"]
    return [*lines, f"| chance | {by_chance:.3f} | 0.500 |", ""]


def _over(values: Sequence[float]) -> str:
    estimate = bootstrap(values, rounds=1)
    error = f" ± {estimate.standard_error:.3f}" if len(values) > 1 else ""
    return f"{estimate.mean:.3f}{error}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _number(metric: Metric | None, key: str) -> str:
    if metric is None:
        return "–"
    places = 0 if key in ("seconds", "tokens") else 3
    text = f"{metric.mean:.{places}f}"
    if key == "forget quality" and 0 < metric.mean < 0.001:
        text = f"{metric.mean:.0e}"
    if metric.standard_error is not None:
        text += f" ± {metric.standard_error:.{places}f}"
    return text


def frontier(made: Sequence[Row]) -> str:
    """A panel a side: probability of what went to the right, utility kept upwards; whiskers are errors.

    Rings are taught and never-had, black is exact, grey is what touches no weight, orange wrecked.
    """
    sides = list(dict.fromkeys(row.side for row in made))
    parts: list[str] = []
    told: list[str] = []
    for place, side in enumerate(sides):
        left = _LEFT + place * _PANEL
        own = [row for row in made if row.side == side]
        taught = next((r for r in own if r.kind == "taught"), None)
        top = max([1.0, *(row.kept or 0.0 for row in own)])
        parts.append(_panel(side, left, top))
        dots: list[tuple[float, float, str]] = []
        base = taught.metrics["utility"].mean if taught and "utility" in taught.metrics else None
        for row in own:
            known = row.metrics.get("forget probability")
            if known is None or row.kept is None:
                continue
            x = left + (_WIDTH - 70) * min(1.0, max(0.0, known.mean))
            y = _BASE - (_BASE - _TOP) * max(0.0, row.kept) / top
            parts.append(_whiskers(row, known, x, y, base, top))
            tone = _KIND.get(row.kind, "bad" if row.verdict == "wrecks" else "good")
            parts.append(f'<circle class="{tone}" cx="{_n(x)}" cy="{_n(y)}" r="4.5"/>')
            dots.append((x, y, row.name))
            told.append(f"{side} {row.name}: {known.mean:.3g} known, {row.kept:.2f} kept")
        parts = [*_labels(dots, left), *parts]
    width = round(_LEFT + len(sides) * _PANEL)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 390" width="{width}" '
        f'height="390" role="img" aria-label="{escape("; ".join(told))}"><style>{_STYLE}</style>'
        f'<rect class="c" x=".5" y=".5" width="{width - 1}" height="389" rx="12"/>'
        f"{_text('h', _LEFT, 30, 'What is still known against what is still good for')}"
        f"{''.join(parts)}</svg>\n"
    )


def _panel(side: str, left: float, top: float) -> str:
    width = _WIDTH - 70
    parts = [_text("t", left, _TOP - 18, f"{side}: utility kept (1 at the taught ring)")]
    for share in (0.0, 0.5, 1.0):
        y = _BASE - (_BASE - _TOP) * share / top
        parts.append(f'<path class="a" d="M{_n(left)} {_n(y)}H{_n(left + width)}"/>')
        parts.append(_text("t", left - 6, y + 4, f"{share:g}", "end"))
    for share in (0.0, 0.5, 1.0):
        x = left + width * share
        parts.append(f'<path class="a" d="M{_n(x)} {_n(_TOP)}V{_n(_BASE)}"/>')
        parts.append(_text("t", x, _BASE + 16, f"{share:g}", "middle"))
    parts.append(
        _text("t", left + width / 2, _BASE + 36, "probability of what was forgotten", "middle")
    )
    return "".join(parts)


def _whiskers(row: Row, known: Metric, x: float, y: float, base: float | None, top: float) -> str:
    lines = []
    if known.standard_error:
        half = (_WIDTH - 70) * known.standard_error
        lines.append(f"M{_n(x - half)} {_n(y)}H{_n(x + half)}")
    spread = row.metrics["utility"].standard_error if "utility" in row.metrics else None
    if spread and base:
        half = (_BASE - _TOP) * spread / base / top
        lines.append(f"M{_n(x)} {_n(y - half)}V{_n(y + half)}")
    return f'<path class="w" d="{"".join(lines)}"/>' if lines else ""


def _labels(dots: Sequence[tuple[float, float, str]], left: float) -> list[str]:
    """Names in a column beside the panel, each led to its dot by a line."""
    column, y, parts = left + _WIDTH - 62, _TOP - 12.0, []
    step = min(12.0, (_BASE - _TOP + 24) / max(1, len(dots)))
    for at, (dot_x, dot_y, name) in enumerate(sorted(dots, key=lambda d: (d[1], -d[0])), 1):
        lowest = _BASE + 12 - step * (len(dots) - at)  # so that the last still has its place
        y = min(max(y + step, dot_y), lowest)
        parts.append(
            f'<path class="k" d="M{_n(dot_x)} {_n(dot_y)}L{_n(column - 4)} {_n(y)}"/>'
            + _text("", column, y + 4, name)
        )
    return parts


def _text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
