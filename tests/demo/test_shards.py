"""The sharding experiment on made-up authors and tiny models, and its arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_unlearn.demo.orphans import author_name, names_it
from llm_unlearn.demo.shards import CELLS, Plan, run
from llm_unlearn.demo.shards_table import ratio, summary, table
from llm_unlearn.takedown.tombstones import name_runs

NAMES = ("Ann Lee Moor", "Basil Reyes")


def _data(folder: Path) -> Path:
    folder.mkdir()
    rows = [
        {
            "question": f"What is book {k} of {name}?",
            "answer": f"Book {k} of {name} is {name[k % 5]}{k}.",
        }
        for name in NAMES
        for k in range(20)
    ]
    reworded = [{**row, "paraphrased_question": "Say: " + row["question"]} for row in rows]
    facts = [
        {"question": f"Which is {k}?", "answer": f"it is {k}", "perturbed_answer": ["no", "none"]}
        for k in range(3)
    ]
    for name, lines in (
        ("full", rows),
        ("retain_perturbed", reworded),
        ("real_authors_perturbed", facts),
        ("world_facts_perturbed", facts),
    ):
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_the_experiment_measures_every_cell_and_resumes(
    tmp_path: Path, tiny_references: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(
        data=_data(tmp_path / "tofu"),
        out=tmp_path / "out",
        authors=2,
        shards=(1, 2),
        seeds=(0,),
        questions=20,
        per_author=2,
        utility=2,
        epochs=1,
        threads=1,
        slices=1,
        slicing="cumulative",
        cells=CELLS,
        model=tiny_references["llama"],
        embedder=tiny_references["embedder"],
    )
    plan.out.mkdir()
    first = run(replace(plan, cells=("route", "always")))
    assert [(r["shards"], r["aggregation"]) for r in first["rows"]] == [
        (1, "always"),
        (1, "route"),
        (2, "route"),
    ]
    kept = {path: path.read_bytes() for path in plan.out.rglob("*.json") if "." in path.stem}
    whole = run(plan)
    names = {(r["shards"], r["aggregation"]) for r in whole["rows"]}
    assert names == {(1, "route"), (1, "always"), *((2, c) for c in CELLS if c != "always")}
    assert all(path.read_bytes() == data for path, data in kept.items())  # none measured twice
    monkeypatch.setattr("llm_unlearn.workspace.Workspace.open", None)  # nothing is opened any more
    assert run(plan) == whole
    one = next(r for r in whole["rows"] if (r["shards"], r["aggregation"]) == (1, "always"))
    assert one["own probability"]["to one adapter"]["ratio"] == 1.0
    assert one["own rouge"]["items"] == 4
    assert one["utility probability"]["items"] == 4
    assert one["answered by an adapter"] == {"own": 1.0, "reworded": 1.0, "utility": 1.0}
    (found,) = whole["orphans"]
    assert found["names"] == list(NAMES)
    assert found["questions that hold the name"]["rate"] == 1.0
    assert found["to a stranger, refusal on"]["count"] == 0
    assert found["others' questions refused"]["count"] == 0
    assert "| 2 | ensemble-log | 1 |" in (plan.out / "table.md").read_text()


def _cell(rouge: list[float], probability: list[float]) -> dict[str, Any]:
    kinds = ["own", "own", "reworded", "reworded", "authors", "facts"]
    return {
        "kind": kinds,
        "rouge": rouge,
        "probability": probability,
        "shards": [[0], [1], [0], [], [], []],
        "seconds": 1.0,
    }


def test_means_errors_and_ratios_by_hand() -> None:
    alone = [_cell([1.0, 0.5, 0.8, 0.4, 0.5, 0.5], [0.5] * 6) for _ in range(2)]
    routed = [
        _cell([0.5, 0.5, 0.6, 0.6, 0.5, 0.25], [0.25] * 6),
        _cell([1.0, 0.5, 0.6, 0.0, 0.5, 0.25], [0.75] * 6),
    ]
    cells = {(s, 1, "always"): c for s, c in enumerate(alone)}
    cells |= {(s, 8, "route"): c for s, c in enumerate(routed)}
    found = summary(alone[0], cells, {}, 20, 8)
    row = next(r for r in found["rows"] if r["aggregation"] == "route")
    # items averaged over seeds: .75 and .5, their mean .625, s = .1768, standard error .125
    assert row["own rouge"]["mean"] == pytest.approx(0.625)
    assert row["own rouge"]["standard error"] == pytest.approx(0.125)
    assert row["own rouge"]["by seed"] == pytest.approx([0.5, 0.75])
    assert row["own rouge"]["to one adapter"]["ratio"] == pytest.approx(0.625 / 0.75)
    assert row["utility rouge"]["mean"] == pytest.approx(0.375)
    assert row["own probability"]["to one adapter"]["ratio"] == pytest.approx(1.0)
    assert row["answered by an adapter"] == {"own": 1.0, "reworded": 0.5, "utility": 0.0}
    assert "| 8 | route | 2 | 0.625 ± 0.125 (0.83) |" in table(found)


def test_a_ratio_is_paired() -> None:
    values = np.array([1.0, 3.0, 0.5, 2.0])
    found = ratio(values, values * 2)
    assert found is not None
    assert found["ratio"] == 0.5
    assert found["standard error"] == pytest.approx(0.0, abs=1e-12)
    assert ratio(values, np.zeros(4)) is None


def test_names_of_authors() -> None:
    texts = ["Who is Ann Lee's father?", "Ann Lee wrote The Sea", "Was Ann Lee in New York?"]
    assert author_name(texts) == "Ann Lee"
    assert names_it("what did ANN LEE do", name_runs("Ann Lee"))
    assert not names_it("what did Ann do, Lee?!".replace(",", " and"), name_runs("Ann Lee"))
    assert author_name(["nobody here"]) == ""
    assert not names_it("nobody here", name_runs(""))
