"""From cells to rows: means over seeds with standard errors, and a verdict by stated rules.

Guarantees: pure functions of the cells. With several seeds a standard error speaks of other seeds
(another start, another order, another placement); with one it speaks of other texts, where a probe
has a value a text, and is absent otherwise.

With k the mean probability of what went, the share forgotten is (taught - row) / (taught - never-had): 0 as
taught, 1 as never-had. What comes back after relearning or rounding is counted by the same share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.eval.benchmarks.tofu import forget_quality
from llm_unlearn.eval.membership import auc
from llm_unlearn.eval.summary import bootstrap
from llm_unlearn.eval.truth_ratio import truth_score
from llm_unlearn.experiments.cells import Cell
from llm_unlearn.experiments.compare import Comparison

SCHEMA = 1
Number = float | None


@dataclass(frozen=True)
class Metric:
    """Mean, standard error (None if there is none) and of how many: seeds, or texts with one seed."""

    mean: float
    standard_error: Number
    n: int


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        forgotten: share forgotten, 0 as taught, 1 as never-had.
        kept: utility as a share of the taught adapter's.
        verdict: see `judge`.
        returns: what brings the text back: `relearning`, `8 bits`, `4 bits`.
    """

    side: str
    name: str
    kind: str
    metrics: dict[str, Metric]
    forgotten: Number
    kept: Number
    verdict: str
    returns: tuple[str, ...]
    stops: tuple[str, ...]


def utility(cell: Cell) -> Number:
    """Harmonic mean over retained and general text of probability, ROUGE-L recall and truth score.

    TOFU's model utility, over as many groups and scores as there are; any of them 0 makes it 0. Two
    scores of 1 and one of 1/2: 3 / (1 + 1 + 2) = 0.75.
    """
    scores = []
    for name, values in sorted(cell.values.items()):
        group, _, what = name.rpartition(" ")
        if group.startswith(("forget", "attack")) or not values:
            continue
        if what in ("probability", "rouge"):
            scores.append(float(np.mean(values)))
        elif name.endswith("truth ratio"):
            scores.append(float(np.mean([truth_score(v, "kept") for v in values])))
    if not scores:
        return None
    return len(scores) / sum(1 / s for s in scores) if min(scores) > 0 else 0.0


def measures(cell: Cell, never: Cell) -> dict[str, tuple[Number, Sequence[float]]]:
    """Each metric of one seed: its value, and the values of single texts that it is the mean of."""
    found: dict[str, tuple[Number, Sequence[float]]] = {}

    def mean(metric: str, name: str) -> None:
        values = cell.values.get(name)
        if values:
            found[metric] = (float(np.mean(values)), values)

    mean("forget probability", "forget probability")
    mean("forget rouge", "forget rouge")
    mean("forget best of wordings", "forget best")
    mean("extraction strength", "forget extraction")
    mean("comes out within tries", "forget comes out")
    mean("retain probability", "retain probability")
    mean("retain rouge", "retain rouge")
    mean("retain best of wordings", "retain best")
    ratios, others = (c.values.get("forget truth ratio") for c in (cell, never))
    if ratios and others:
        found["forget quality"] = (forget_quality(ratios, others).p_value, ())
    found["utility"] = (utility(cell), ())
    own, theirs = _auc(cell), _auc(never)
    if own is not None and theirs is not None:
        found["membership AUC"] = (own, ())
        found["membership distance"] = (abs(own - theirs), ())
    passes = [n for n in cell.values if n.startswith("relearned ")]
    for name in sorted(passes, key=lambda n: int(n.split()[1])):
        mean(name, name)
    if passes:
        mean("relearned", max(passes, key=lambda n: int(n.split()[1])))
    for name in ("8 bits", "4 bits"):
        mean(name, name)
    for name in sorted(cell.values):
        if name.endswith(" choice"):
            mean(name, name)
    mean("attack", "attack triggered")
    mean("attack without trigger", "attack plain")
    for name, price in (("seconds", cell.seconds), ("tokens", cell.tokens)):
        if price is not None:
            found[name] = (float(price), ())
    return {name: pair for name, pair in found.items() if pair[0] is not None}


def rows(found: Comparison) -> list[Row]:
    """The table, in the order in which it was measured."""
    made: list[Row] = []
    unequal = found.unequal()
    every = {row: _metrics(found, *row) for row in found.rows()}
    floor = found.config.forgetting.get("utility_floor", 0.8)
    for side, name in found.rows():
        taught, never, own = (every[side, n] for n in ("taught", "never-had", name))
        cells = found.of(side, name)
        shares = {
            what: _share(taught, never, own, what)
            for what in ("forget probability", "relearned", "8 bits", "4 bits")
        }
        forgotten = shares["forget probability"]
        kept = _ratio(own.get("utility"), taught.get("utility"))
        runs = [run for cell in cells for run in cell.runs]
        differs = any(line.startswith(f"{side}, {name},") for line in unequal)
        returns = tuple(
            label
            for label, what in (
                ("relearning", "relearned"),
                ("8 bits", "8 bits"),
                ("4 bits", "4 bits"),
            )
            if forgotten is not None
            and forgotten >= 0.5
            and (share := shares[what]) is not None
            and share < 0.5
        )
        made.append(
            Row(
                side,
                name,
                cells[0].kind,
                own,
                forgotten,
                kept,
                judge(cells[0].kind, forgotten, kept, _floor(runs, floor), runs, differs),
                returns if cells[0].kind == "approximate" else (),
                tuple(sorted({str(run["stop"]) for run in runs})),
            )
        )
    return made


def _floor(runs: Sequence[dict[str, Any]], common: float) -> float:
    """The floor that this row's own runs kept to, where the method set one."""
    own = [run["settings"]["utility_floor"] for run in runs if "settings" in run]
    return min(own, default=common)


def judge(
    kind: str,
    forgotten: Number,
    kept: Number,
    floor: float,
    runs: Sequence[dict[str, Any]],
    differs: bool,
) -> str:
    """A row in two words.

    `wrecks`: utility ended below its floor, or the stopping rule had to end a run to keep it there before
    the text was as unlikely as aimed; else by the share forgotten: `forgets` from 0.9 on, `partly` from
    0.5, `barely` below. Exact rows `equal` never-had or differ; fronts only `hide`.
    """
    if kind in ("taught", "never-had"):
        return "reference"
    if kind == "exact":
        return "DIFFERS" if differs else "equal"
    if kind == "front":
        return "hides"
    stopped = any(
        run["verdict"] == "failed" or (run["stop"] == "utility" and run["verdict"] != "forgotten")
        for run in runs
    )
    if stopped or (kept is not None and kept < floor):
        return "wrecks"
    if forgotten is None:
        return "unknown"
    return "forgets" if forgotten >= 0.9 else "partly" if forgotten >= 0.5 else "barely"


def plain(found: Comparison, made: Sequence[Row]) -> dict[str, Any]:
    """Everything as plain values, for the JSON file."""
    unequal = found.unequal()
    return {
        "schema": SCHEMA,
        "kind": "compare",
        "config": found.config.without_paths(),
        "about": found.about,
        "exact_equals_never_had": not unequal,
        "unequal": unequal,
        "rows": [asdict(row) for row in made],
        "runs": [
            {"side": c.side, "name": c.name, "seed": c.seed, **run}
            for c in found.cells
            for run in c.runs
        ],
    }


def read_rows(path: Path) -> list[Row]:
    """The rows of a `result.json`.

    Raises:
        NotFound: no such file.
        InputError: it is no result of a comparison.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Make one: llm-unlearn compare CONFIG --out DIR.")
    try:
        plain = json.loads(path.read_bytes())
        if plain["kind"] != "compare" or plain["schema"] != SCHEMA:
            raise ValueError(f"kind {plain['kind']!r}, schema {plain['schema']!r}")
        return TypeAdapter(list[Row]).validate_python(plain["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no result of `compare` of schema {SCHEMA}: {str(error).splitlines()[0]}.",
            "Give the result.json of a comparison.",
        ) from error


def _metrics(found: Comparison, side: str, name: str) -> dict[str, Metric]:
    never = {c.seed: c for c in found.of(side, "never-had")}
    each = [measures(c, never[c.seed]) for c in found.of(side, name)]
    made = {}
    for metric in each[0]:
        pairs = [one[metric] for one in each if metric in one]
        values = [p[0] for p in pairs if p[0] is not None]
        texts = pairs[0][1] if len(pairs) == 1 else ()
        estimate = bootstrap(texts if texts else values, rounds=1)
        spread = estimate.standard_error
        made[metric] = Metric(estimate.mean, spread if math.isfinite(spread) else None, estimate.n)
    return made


def _share(
    taught: dict[str, Metric], never: dict[str, Metric], own: dict[str, Metric], what: str
) -> Number:
    if not all(what in side for side in (taught, never, own)):
        return None
    top, bottom = taught[what].mean, never[what].mean
    return (top - own[what].mean) / (top - bottom) if top > bottom else None


def _ratio(own: Metric | None, taught: Metric | None) -> Number:
    if own is None or taught is None or not taught.mean:
        return None
    return own.mean / taught.mean


def _auc(cell: Cell) -> Number:
    inside, outside = cell.values.get("forget score"), cell.values.get("stranger score")
    return auc(inside, outside) if inside and outside else None
