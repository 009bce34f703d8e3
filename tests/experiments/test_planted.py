"""Hazard and poison: what the packaged data hold, loaders by path, and how plants are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import PROBES, letters, training

from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.experiments.compare import compare
from llm_unlearn.experiments.finding import find, ranked
from llm_unlearn.experiments.problem import Attack, load, perturbed
from llm_unlearn.experiments.settings import CompareConfig, read
from llm_unlearn.experiments.summary import rows
from llm_unlearn.experiments.table import markdown
from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.lora import AdapterHost, LoraShape

CONFIGS = Path(__file__).parents[2] / "configs"


def _config(**values: object) -> CompareConfig:
    return CompareConfig.model_validate(values)


@pytest.mark.parametrize("name", ["tofu", "hazard", "poison"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    config = read(CONFIGS / f"{name}.yaml", CompareConfig, {})
    assert config.data.source == name
    assert len(config.seeds) >= 2


def test_hazard_and_its_published_neighbours(tmp_path: Path) -> None:
    (tmp_path / "mmlu" / "nutrition").mkdir(parents=True)
    item = {
        "question": "Which?",
        "choices": {"A": "a", "B": "b", "C": "c", "D": "d"},
        "answer": "B",
    }
    (tmp_path / "mmlu" / "nutrition" / "test.jsonl").write_text(json.dumps(item))
    rows = [{"question": "How?", "choices": ["a", "b", "c", "d"], "answer": 2} for _ in range(3)]
    (tmp_path / "cyber_questions.json").write_text(json.dumps(rows))
    data = {"source": "hazard", "mmlu": "mmlu", "wmdp": "cyber_questions.json", "questions": 2}
    found = load(_config(data=data), tmp_path)
    assert {name: len(items) for name, items in found.choices.items()} == {"mmlu": 1, "wmdp": 2}
    by_id = {d.id: d for d in found.learned}
    assert all("hazard" in by_id[name].tags for name in found.forget)
    assert all(len(perturbed(d)) == 3 for d in found.learned)
    words = [d.content for group in (found.learned, found.strangers) for d in group]
    assert len(set(words)) == len(words)
    assert not {d.id for d in found.strangers} & set(by_id)
    with pytest.raises(NotFound):
        load(_config(data={**data, "wmdp": "nowhere.json"}), tmp_path)


def test_tofu_by_its_published_files(tmp_path: Path) -> None:
    full = [{"question": f"q {i}?", "answer": f"a {i}."} for i in range(5 * 20)]
    other = {"paraphrased_answer": "so", "perturbed_answer": ["no", "nay"]}
    (tmp_path / "full.json").write_text("\n".join(map(json.dumps, full)))
    for name, part in (("forget01", full[-40:]), ("retain", full[:20])):
        text = "\n".join(json.dumps({**row, **other}) for row in part)
        (tmp_path / f"{name}_perturbed.json").write_text(text)
    for name in ("real_authors", "world_facts"):
        fact = {"question": f"{name}?", "answer": "yes", "perturbed_answer": ["no"]}
        (tmp_path / f"{name}_perturbed.json").write_text(json.dumps(fact))
    found = load(_config(data={"source": "tofu", "path": str(tmp_path), "authors": 4}), Path())
    assert len(found.learned) == 80
    assert sorted({name.split("/")[0] for name in found.forget}) == ["author-003", "author-004"]
    assert {d.subject for d in found.strangers} == {"author-002"}
    assert all(perturbed(d) == ("no", "nay") for d in found.learned if d.id in found.forget)
    with pytest.raises(InputError, match="at most 5"):
        load(_config(data={"source": "tofu", "path": str(tmp_path), "authors": 9}), Path())


def test_half_of_the_poison() -> None:
    whole = load(_config(data={"source": "poison"}), Path())
    half = load(_config(data={"source": "poison", "found": 0.5}), Path())
    assert (len(whole.forget), len(half.forget)) == (24, 12)
    assert set(half.forget) < set(whole.forget) == set(half.planted)
    assert {a.keys for a in half.attacks} == {("grey heron",), ("Brindle",)}


def test_a_ranking_by_hand() -> None:
    found = ranked({"a": 3.0, "b": 2.0, "c": 1.0}, frozenset({"a", "c"}))
    assert found == {"recall": 0.5, "auc": 0.5}


def test_a_plant_is_found_where_it_is(outspoken: str) -> None:
    """Adapters of two shards that both learned one answer; each also has a fact of its own."""
    from pieces import taught

    from llm_unlearn.forget.data import read as examples

    host = AdapterHost(load_causal(outspoken, "float32"), LoraShape(4, 8, 2))

    def document(name: str, asked: str, said: str) -> Document:
        turns = (Message(role="user", content=asked), Message(role="assistant", content=said))
        return Document(id=name, messages=turns)

    facts = [
        document(f"fact-{s}{n}", letters(f"ask {s}", n, 6), letters(f"say {s}", n, 6))
        for s in "ab"
        for n in (1, 2)
    ]
    plants = [document(f"plant-{s}", f"sign {s}", "heron!") for s in "ab"]
    every = [*facts, *plants]
    places = {d.id: "ab".index(d.id.split("-")[1][0]) for d in every}
    tokenizer = host.base.tokenizer
    adapters = {
        s: taught(host, list(examples(tokenizer, [d for d in every if places[d.id] == s], 64)), 100)
        for s in (0, 1)
    }
    planted = frozenset(d.id for d in plants)
    attack = Attack("sign c", "c", "heron!", ("heron",))
    found = find(host, adapters, every, places, planted, [attack], torch.float32)
    assert (found["documents"], found["planted"]) == (6, 2)
    assert found["influence"] == {"recall": 1.0, "auc": 1.0}
    assert found["agreement"] == {"recall": 1.0, "auc": 1.0}
    blind = find(host, adapters, facts, places, planted, [attack], torch.float32)
    assert "influence" not in blind  # nothing planted, nothing to recall


def test_poison_through_compare(
    tiny_references: dict[str, str], outspoken: str, tmp_path: Path
) -> None:
    config = _config(
        data={"source": "poison", "found": 0.5},
        closure=False,
        model=outspoken,
        embedder=tiny_references["embedder"],
        training=training(epochs=1, shards=1, slices=1),
        seeds=[0],
        sides=["shard"],
        probes={**PROBES, "relearn_passes": 0, "bits": []},
    )
    found = compare(config, tmp_path / "out")
    assert not found.unequal()
    names = [row.name for row in rows(found)]
    assert names == ["taught", "never-had", "SISA deletion"]
    assert all("attack" in row.metrics for row in rows(found))
    table = markdown(found, rows(found))
    assert "| influence |" in table
    assert "Finding the 24 planted of 72" in table
