"""From the values of cells to means, ratios, standard errors, and a table. Pure functions.

Every value has one number an item. Seeds of one cell are averaged item by item first, so that standard
errors speak of drawing other questions; how far seeds lie apart is told beside. Ratios to the one
adapter compare the same items, with a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.eval.summary import bootstrap, resamples

MEASURES = (
    ("own", "rouge"),
    ("own", "probability"),
    ("reworded", "rouge"),
    ("reworded", "probability"),
    ("utility", "rouge"),
    ("utility", "probability"),
)
_ALONE = "always"  # the one adapter, asked whatever the question: what all is compared with
Cells = Mapping[tuple[int, int, str], Mapping[str, Any]]


def ratio(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], rounds: int = 2000
) -> dict[str, float] | None:
    """The ratio of two means over the same items, with its paired bootstrap interval and error.

    [1, 2] over [2, 2]: 1.5 / 2 = 0.75. None over a mean of 0; resamples of mean 0 are left out.
    """
    if not denominator.mean() > 0:
        return None
    drawn = []
    for index in resamples(len(numerator), rounds, 0):
        above, below = numerator[index].mean(axis=1), denominator[index].mean(axis=1)
        drawn.append(above[below > 0] / below[below > 0])
    ratios = np.concatenate(drawn)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {
        "ratio": float(numerator.mean() / denominator.mean()),
        "standard error": float(ratios.std(ddof=1)),
        "low": float(low),
        "high": float(high),
    }


def _values(cell: Mapping[str, Any], kind: str, measure: str) -> NDArray[np.float64]:
    kinds = ("authors", "facts") if kind == "utility" else (kind,)
    chosen = [v for k, v in zip(cell["kind"], cell[measure], strict=True) if k in kinds]
    return np.array(chosen, dtype=np.float64)


def _row(seeds: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"seeds": len(seeds)}
    for kind, measure in MEASURES:
        each = np.array([_values(cell, kind, measure) for cell in seeds])  # (seeds, items)
        items = each.mean(axis=0)
        found = bootstrap(items)
        entry: dict[str, Any] = {
            "mean": found.mean,
            "standard error": found.standard_error,
            "items": found.n,
            "by seed": each.mean(axis=1).tolist(),
        }
        if alone:
            one = np.array([_values(cell, kind, measure) for cell in alone]).mean(axis=0)
            entry["to one adapter"] = ratio(items, one)
        row[f"{kind} {measure}"] = entry
    row["seconds"] = [cell.get("seconds") for cell in seeds]
    row["answered by an adapter"] = {
        kind: float(np.mean([bool(s) for cell in seeds for s in _shards(cell, kind)]))
        for kind in ("own", "reworded", "utility")
    }
    return row


def _shards(cell: Mapping[str, Any], kind: str) -> list[Any]:
    kinds = ("authors", "facts") if kind == "utility" else (kind,)
    return [s for k, s in zip(cell["kind"], cell["shards"], strict=True) if k in kinds]


def summary(
    base: Mapping[str, Any],
    cells: Cells,
    orphans: Mapping[tuple[int, int], Mapping[str, Any]],
    authors: int,
    epochs: int,
) -> dict[str, Any]:
    """Means, errors and ratios of each (shards, aggregation); cells by (seed, shards, aggregation)."""
    alone = {seed: cell for (seed, n, name), cell in cells.items() if (n, name) == (1, _ALONE)}
    rows = []
    for shards, name in sorted({(n, name) for _, n, name in cells}):
        seeds = {s: c for (s, n, other), c in cells.items() if (n, other) == (shards, name)}
        both = sorted(seeds.keys() & alone.keys())
        kept = both or sorted(seeds)  # ratios compare the same seeds
        row = _row([seeds[s] for s in kept], [alone[s] for s in both])
        rows.append({"shards": shards, "aggregation": name, **row})
    return {
        "authors": authors,
        "epochs": epochs,
        "base": _row([base], list(alone.values())),
        "rows": rows,
        "orphans": [
            {"seed": seed, "shards": shards, **found}
            for (seed, shards), found in sorted(orphans.items())
        ],
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    heads = [f"{kind} {'ROUGE' if measure == 'rouge' else 'p'}" for kind, measure in MEASURES]
    lines = [
        f"{result['authors']} authors, {result['epochs']} epochs. Mean ± standard error over "
        "questions; in brackets the ratio to the one adapter.",
        "",
        f"| shards | aggregation | seeds | {' | '.join(heads)} |",
        f"| --- | --- | --- |{' --- |' * len(heads)}",
    ]
    named = [{"shards": 0, "aggregation": "base model", **result["base"]}, *result["rows"]]
    for row in named:
        shown = [_shown(row[f"{kind} {measure}"]) for kind, measure in MEASURES]
        start = f"| {row['shards'] or ''} | {row['aggregation']} | {row['seeds']} |"
        lines.append(f"{start} {' | '.join(shown)} |")
    if result["orphans"]:
        lines += ["", "| shards | seed | orphans to a stranger | with refusal | hold the name | "
                  "others refused |", "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for found in result["orphans"]:
            rates = [
                _rate(found[name])
                for name in (
                    "to a stranger, refusal off",
                    "to a stranger, refusal on",
                    "questions that hold the name",
                    "others' questions refused",
                )
            ]
            lines.append(f"| {found['shards']} | {found['seed']} | {' | '.join(rates)} |")
    return "\n".join(lines) + "\n"


def _shown(entry: Mapping[str, Any]) -> str:
    text = f"{entry['mean']:.3f} ± {entry['standard error']:.3f}"
    if entry.get("to one adapter"):
        text += f" ({entry['to one adapter']['ratio']:.2f})"
    return text


def _rate(found: Mapping[str, float]) -> str:
    return f"{found['count']}/{found['of']} = {found['rate']:.3f}"
