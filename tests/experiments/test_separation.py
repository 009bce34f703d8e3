"""Separation on tiny models: the same documents three times over."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from conftest import training

from llm_unlearn.experiments.run import run
from llm_unlearn.experiments.separation import ARMS, COLUMNS
from llm_unlearn.experiments.settings import SeparationConfig, read


def test_the_shipped_config_is_valid() -> None:
    path = Path(__file__).parents[2] / "configs" / "separation.yaml"
    assert len(read(path, SeparationConfig, {}).seeds) == 2


def test_three_arms_on_the_same_documents(
    tiny_references: dict[str, str], outspoken: str, tmp_path: Path
) -> None:
    config = tmp_path / "separation.yaml"
    values = {
        "kind": "separation",
        "model": outspoken,
        "embedder": tiny_references["embedder"],
        "training": training(epochs=4, slices=1),
        "answering": {"max_new_tokens": 4},
        "seeds": [0],
        "subjects": 2,
    }
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    found = run(config, out).plain
    arms = found["arms"]
    assert list(arms) == list(ARMS)
    assert all(set(row) == {name for name, _ in COLUMNS} for row in arms.values())
    known = {arm: row["weights: probability"]["mean"] for arm, row in arms.items()}
    assert known["store"] < known["both"] < known["adapters"]  # only what was learned is in weights
    shown = {arm: row["text shown"]["mean"] for arm, row in arms.items()}
    assert shown["adapters"] == 0
    assert shown["store"] > 0
    assert arms["store"]["fenced, s"]["mean"] <= arms["store"]["deleted, s"]["mean"]
    assert json.loads((out / "result.json").read_text()) == found
    assert "| style carried |" in (out / "table.md").read_text()
    steps: list[str] = []
    assert run(config, out, told=steps.append).plain == found
    assert not steps
