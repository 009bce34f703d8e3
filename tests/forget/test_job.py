"""Jobs from files to files: what PEFT and transformers load, what is refused, sweeps, the bench."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pieces import KINDS, documents
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.forget import bench, job
from llm_unlearn.forget.frontier import frontier_svg
from llm_unlearn.forget.methods import method
from llm_unlearn.forget.result import Record
from llm_unlearn.models.lora import AdapterHost

TEXTS = job.Texts(documents(6)[:2], documents(6)[2:])
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 2,
    "check_every": 1,
    "dtype": "float32",
    "threads": 1,
    "target": 1e-9,
    "utility_floor": 0.0,
}


def _target(reference: str, **given: Any) -> job.Target:
    return job.target(reference, dtype="float32", **{"top_layers": 2, "rank": 4, **given})


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_the_result_and_forgetting_goes_on_from_it(
    tiny_references: dict[str, str], kind: str, tmp_path: Path
) -> None:
    aim = _target(tiny_references[kind])
    out = tmp_path / "out"
    record = job.forget(aim, method("graddiff"), TEXTS, job.settings(SETTINGS), out)
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "record.json",
    ]
    assert Record.model_validate_json((out / "record.json").read_bytes()) == record
    ids = torch.tensor([[5, 9, 30, 77]])
    base = AutoModelForCausalLM.from_pretrained(tiny_references[kind], dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(out)).eval()
    assert isinstance(aim.weights, AdapterHost)
    aim.weights.load(load_file(out / "adapter_model.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=ids).logits, aim.weights.model(input_ids=ids).logits
        )
    again = _target(tiny_references[kind], adapter=out)
    assert all(again.start[n].equal(t) for n, t in aim.weights.state().items())


def test_full_weights_are_written_as_a_model(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    aim = _target(tiny_references["llama"], full=True)
    out = tmp_path / "out"
    job.forget(aim, method("npo"), TEXTS, job.settings(SETTINGS), out)
    ids = torch.tensor([[5, 9, 30, 77]])
    read = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            read(input_ids=ids).logits, aim.weights.model(input_ids=ids).logits
        )
        before = AutoModelForCausalLM.from_pretrained(tiny_references["llama"], dtype=torch.float32)
        assert not torch.equal(read(input_ids=ids).logits, before(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["idk-dpo", "altpo"])
@pytest.mark.parametrize("full", [False, True])
def test_other_answers_are_made_on_the_way(
    tiny_references: dict[str, str], tmp_path: Path, name: str, full: bool
) -> None:
    aim = _target(tiny_references["llama"], full=full)
    texts = job.Texts(TEXTS.forget, TEXTS.retain, given={"subject-0/0": "Someone else."})
    record = job.forget(aim, method(name), texts, job.settings(SETTINGS), tmp_path / "out")
    assert record.texts == {"forget": 2, "retain": 4, "utility": 0}
    assert record.start != record.end


def test_adapters_of_other_kinds_are_refused(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    aim = _target(tiny_references["llama"])
    good = tmp_path / "good"
    job.forget(aim, method("ga"), TEXTS, job.settings(SETTINGS), good)
    plain = json.loads((good / "adapter_config.json").read_text())
    tensors = load_file(good / "adapter_model.safetensors")

    def refused(
        words: str, config: dict[str, Any], weights: dict[str, torch.Tensor] = tensors
    ) -> None:
        folder = tmp_path / "odd"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
        save_file(weights, folder / "adapter_model.safetensors")
        with pytest.raises(InputError, match=words):
            _target(tiny_references["llama"], adapter=folder)

    refused("not plain LoRA .use_dora.", {"use_dora": True})
    refused("not plain LoRA", {"peft_type": "IA3"})
    refused("changes layers", {"layers_to_transform": [0, 1]})
    refused("does not fit the model", {"r": 8})
    refused("does not fit the model", {}, {**tensors, "elsewhere.lora_A.weight": torch.ones(1)})
    with pytest.raises(InputError, match="no adapter_config"):
        _target(tiny_references["llama"], adapter=tmp_path)
    (good / "adapter_model.safetensors").unlink()
    with pytest.raises(EnvironmentFailure, match="never read"):
        _target(tiny_references["llama"], adapter=good)


def test_an_adapter_of_some_maps_begins_as_it_was(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    aim = _target(tiny_references["llama"])
    job.forget(aim, method("ga"), TEXTS, job.settings(SETTINGS), tmp_path / "out")
    path = tmp_path / "out" / "adapter_model.safetensors"
    some = {n: t for n, t in load_file(path).items() if ".q_proj." in n}
    save_file(some, path)
    again = _target(tiny_references["llama"], adapter=tmp_path / "out")
    assert all(again.start[n].equal(t) for n, t in some.items())
    others = [t for n, t in again.start.items() if ".lora_B." in n and n not in some]
    assert others
    assert not any(t.any() for t in others)


def test_a_folder_that_holds_something_is_left_alone(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    aim = _target(tiny_references["llama"])
    with pytest.raises(InputError, match=r"holds mine\.txt already"):
        job.forget(aim, method("ga"), TEXTS, job.settings(SETTINGS), tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        job.forget(aim, method("ga"), TEXTS, job.settings(SETTINGS), tmp_path / "mine.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_job_goes_on(
    tiny_references: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_unlearn.forget.run._SAVE_SECONDS", 0.0)
    aim, chosen = _target(tiny_references["llama"]), job.settings({**SETTINGS, "epochs": 4})
    whole = job.forget(aim, method("npo"), TEXTS, chosen, tmp_path / "whole")

    def stop(_name: str, done: int, _total: int, _loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.forget(aim, method("npo"), TEXTS, chosen, tmp_path / "cut", progress=stop)
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["unfinished.safetensors"]
    assert job.forget(aim, method("npo"), TEXTS, chosen, tmp_path / "cut").end == whole.end
    names = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("whole", "cut")]
    assert names[0] == names[1]


def test_a_sweep_draws_its_frontier_and_goes_on(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    aim, chosen = _target(tiny_references["llama"]), job.settings(SETTINGS)
    out = tmp_path / "sweep"
    records = job.sweep(aim, method("ga"), TEXTS, chosen, [4.0, 0.5], out)
    assert [r.settings.strength for r in records] == [0.5, 4.0]
    assert not any(r.settings.rules for r in records)
    found = json.loads((out / "frontier.json").read_text())
    assert [p["forget"] for p in found["points"]] == [r.after.forget for r in records]
    drawing = ET.fromstring((out / "frontier.svg").read_text())
    assert len(drawing.findall("{http://www.w3.org/2000/svg}circle")) == 3
    assert frontier_svg("ga", records) == (out / "frontier.svg").read_text()
    assert not list(out.glob("*.safetensors"))
    stamp = (out / "strength-4.json").stat().st_mtime_ns
    more = job.sweep(aim, method("ga"), TEXTS, chosen, [0.5, 2.0, 4.0], out)
    assert (out / "strength-4.json").stat().st_mtime_ns == stamp
    assert more[0] == records[0]
    assert len(more) == 3
    with pytest.raises(InputError, match="other settings"):
        job.sweep(aim, method("npo"), TEXTS, chosen, [0.5], out)
    with pytest.raises(InputError, match="above 0"):
        job.sweep(aim, method("npo"), TEXTS, chosen, [0.0], tmp_path / "none")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": 0.5}, "utility is gone at the first look; use 1e-5 to 2e-3"),
        ({"epochs": 0}, "epochs = 0"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
    ],
)
def test_wrong_settings_are_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        job.settings(values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bench_compares_equal_losses(tiny_references: dict[str, str], kind: str) -> None:
    rows = bench.compare(
        tiny_references[kind],
        bench.invented(8),
        top_layers=2,
        rank=4,
        batch=2,
        steps=2,
        dtype="float32",
        threads=1,
    )
    assert [row.method for row in rows] == ["graddiff", "npo"]
    assert all(row.ours > 0 and row.peer > 0 and row.ours_low <= row.ours_high for row in rows)


def test_the_bench_refuses_to_compare_unlike_steps(
    tiny_references: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench._Peer, "_mean", lambda self, batch: 2 * self._sums(batch).mean())
    with pytest.raises(EnvironmentFailure, match="Not comparable"):
        bench.compare(
            tiny_references["llama"], bench.invented(4), top_layers=2, batch=2, steps=1,
            dtype="float32", threads=1,
        )  # fmt: skip
