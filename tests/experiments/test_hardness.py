"""Hardness: arithmetic by hand, and the whole experiment on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import training

from llm_unlearn.errors import InputError
from llm_unlearn.experiments.hardness import correlation, spearman
from llm_unlearn.experiments.run import run
from llm_unlearn.experiments.settings import HardnessConfig, read


def test_rank_correlation_by_hand() -> None:
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    stats = pytest.importorskip("scipy.stats")
    a, b = [3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_an_interval_holds_its_correlation() -> None:
    a = list(range(20))
    found = correlation(a, [x + 5 * (x % 3) for x in a])
    assert found.low < found.mean < found.high <= 1
    assert correlation(a, a).low == pytest.approx(1)


def test_the_shipped_config_is_valid() -> None:
    path = Path(__file__).parents[2] / "configs" / "hardness.yaml"
    assert len(read(path, HardnessConfig, {}).seeds) == 2


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("magic", "no method 'magic'"),
        ("ssd", "makes one move"),
        ("{name: npo, strength: 2}", "strength is not the method's here"),
        ("{name: npo, run: {epochs: 3}}", "epochs is not the method's here"),
        ("{name: npo, run: {clip: 0}}", "clip"),
    ],
)
def test_a_method_that_cannot_be_counted_is_refused_at_once(method: str, words: str) -> None:
    path = Path(__file__).parents[2] / "configs" / "hardness.yaml"
    with pytest.raises(InputError, match=words):
        read(path, HardnessConfig, {}, [f"method={method}"])


def test_each_fact_is_measured_and_a_rest_is_resumed(
    tiny_references: dict[str, str], outspoken: str, tmp_path: Path
) -> None:
    config = tmp_path / "hardness.yaml"
    values = {
        "kind": "hardness",
        "model": outspoken,
        "embedder": tiny_references["embedder"],
        "training": training(epochs=8),
        "seeds": [0],
        "facts": 2,
        "kinds": ["rare", "common"],
        "target": 0.02,
        "most_steps": 4,
        "steps": 2,
        "strengths": [1, 30],
        "most_passes": 2,
        "method": {"name": "npo", "run": {"learning_rate": 2e-3}},
    }
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    found = run(config, out).plain
    assert [f["kind"] for f in found["facts"]] == ["rare", "rare", "common", "common"]
    for fact in found["facts"]:
        assert 1 <= fact["steps"] <= 4
        assert fact["strength"] in (1, 30)
        assert 1 <= fact["relearning"] <= 2
        assert 0 < fact["base probability"] < 1
    assert set(found["correlations"]["steps"]) == {
        "base probability", "entailing probes", "neighbourhood",
    }  # fmt: skip
    assert "Spearman" in (out / "table.md").read_text()
    assert (out / "hardness.svg").read_text().count("<circle") == 4 + 2
    lost = next((out / "cells").glob("*rare*"))
    lost.unlink()
    steps: list[str] = []
    again = run(config, out, told=steps.append).plain
    assert len(steps) == 1
    assert again == found
    assert json.loads((out / "result.json").read_text()) == found
