"""Means, shares and verdicts by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llm_unlearn.experiments.cells import Cell
from llm_unlearn.experiments.compare import Comparison
from llm_unlearn.experiments.settings import CompareConfig
from llm_unlearn.experiments.summary import judge, rows, utility
from llm_unlearn.experiments.table import frontier, markdown

CONFIG = CompareConfig.model_validate(
    {"data": {"source": "documents"}, "seeds": [0, 1], "methods": ["npo"]}
)


def _cell(name: str, kind: str, seed: int, known: float, again: float, keeps: float) -> Cell:
    values = {
        "forget probability": [known, known],
        "relearned 1": [again],
        "retain probability": [keeps],
        "retain rouge": [keeps],
    }
    runs: list[dict[str, Any]] = []
    if kind == "approximate":
        runs = [{"verdict": "partly", "stop": "steps"}]
    return Cell(side="monolith", name=name, kind=kind, seed=seed, values=values, runs=runs)


def _found(npo: tuple[float, float, float]) -> Comparison:
    cells = []
    for seed in (0, 1):
        cells += [
            _cell("taught", "taught", seed, 0.9, 0.9, 0.8),
            _cell("never-had", "never-had", seed, 0.1, 0.3, 0.8),
            _cell("naive retraining", "exact", seed, 0.1, 0.3, 0.8),
            _cell("npo", "approximate", seed, npo[0] + 0.1 * seed, npo[1], npo[2]),
        ]
    cells.sort(key=lambda c: (["taught", "never-had", "naive retraining", "npo"]).index(c.name))
    about = {"documents": 9, "asked to forget": 3}
    return Comparison(CONFIG, tuple(cells), about)


def test_a_row_by_hand() -> None:
    row = rows(_found((0.2, 0.8, 0.6)))[-1]
    # .2 and .3: mean .25, s = .0707, standard error .05
    known = row.metrics["forget probability"]
    assert (known.mean, known.n) == (pytest.approx(0.25), 2)
    assert known.standard_error == pytest.approx(0.05)
    assert row.forgotten == pytest.approx((0.9 - 0.25) / (0.9 - 0.1))
    assert row.kept == pytest.approx(0.75)
    assert row.verdict == "wrecks"  # .75 is below the floor of .8
    assert row.returns == ("relearning",)  # (.9 - .8) / (.9 - .3) = .17


@pytest.mark.parametrize(
    ("npo", "verdict", "returns"),
    [
        ((0.05, 0.3, 0.8), "forgets", ()),
        ((0.35, 0.5, 0.8), "partly", ()),
        ((0.8, 0.9, 0.8), "barely", ()),  # what was never forgotten does not come back
    ],
)
def test_verdicts(npo: tuple[float, float, float], verdict: str, returns: tuple[str, ...]) -> None:
    row = rows(_found(npo))[-1]
    assert (row.verdict, row.returns) == (verdict, returns)


def test_the_stopping_rule_makes_a_wreck_too() -> None:
    stopped = [{"verdict": "partly", "stop": "utility"}]
    assert judge("approximate", 0.95, 1.0, 0.8, stopped, False) == "wrecks"
    reached = [{"verdict": "forgotten", "stop": "utility"}]
    assert judge("approximate", 0.95, 1.0, 0.8, reached, False) == "forgets"
    assert judge(
        "approximate", 0.95, 1.0, 0.8, [{"verdict": "failed", "stop": "steps"}], False
    ) == ("wrecks")
    assert judge("exact", 1.0, 1.0, 0.8, [], True) == "DIFFERS"
    assert judge("front", 1.0, 1.0, 0.8, [], False) == "hides"


def test_utility_by_hand() -> None:
    cell = _cell("taught", "taught", 0, 0.5, 0.5, 0.5)
    # truth ratios .5 and 2: scores .5 and 0, mean .25; then 3 / (2 + 2 + 4) = .375
    values = {**cell.values, "retain truth ratio": [0.5, 2.0], "attack triggered": [0.0]}
    assert utility(cell.model_copy(update={"values": values})) == pytest.approx(0.375)
    nought = {**values, "retain rouge": [0.0]}
    assert utility(cell.model_copy(update={"values": nought})) == 0
    assert utility(cell.model_copy(update={"values": {"forget probability": [1.0]}})) is None


def test_the_drawing_and_the_table_are_functions_of_the_rows() -> None:
    found = _found((0.05, 0.3, 0.8))
    made = rows(found)
    assert frontier(made) == frontier(rows(_found((0.05, 0.3, 0.8))))
    assert frontier(made).count("<circle") == 4
    line = next(each for each in markdown(found, made).splitlines() if "| npo |" in each)
    assert "| forgets | – | 1.00 | 1.00 | 0.100 ± 0.050 |" in line
    assert math.isclose(made[-1].kept or 0, 1.0)
