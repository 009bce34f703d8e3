"""Jobs from files to files: what PEFT and transformers load, what is refused, sweeps, the bench."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pieces import KINDS, documents
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.forget import bench, job
from llm_unlearn.forget.frontier import frontier_svg
from llm_unlearn.forget.methods import method
from llm_unlearn.forget.result import Record
from llm_unlearn.forget.weights import digest
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
    given = {"subject-0/0": "Someone else.", "subject-1/0": "Nobody."}
    texts = job.Texts(TEXTS.forget, TEXTS.retain, given=given)
    record = job.forget(aim, method(name), texts, job.settings(SETTINGS), tmp_path / "out")
    assert record.texts == {"forget": 2, "retain": 4, "utility": 0}
    assert record.start != record.end


def test_who_knows_the_text_makes_no_alternatives_up(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    chosen = job.settings(SETTINGS)
    some = job.Texts(TEXTS.forget, TEXTS.retain, given={"subject-0/0": "Someone else."})
    for full in (False, True):
        aim = _target(tiny_references["llama"], full=full)
        with pytest.raises(InputError, match="no other answer for 'subject-1/0'"):
            job.forget(aim, method("altpo"), some, chosen, tmp_path / "none")
    aim = _target(tiny_references["llama"])
    other = job.Texts(TEXTS.forget, TEXTS.retain, given={"subject-9/0": "Someone else."})
    with pytest.raises(InputError, match="'subject-9/0', which is not to be forgotten"):
        job.forget(aim, method("altpo"), other, chosen, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    # with a trained adapter there is a model without it, which makes the rest up
    job.forget(aim, method("graddiff"), TEXTS, chosen, tmp_path / "trained")
    trained = _target(
        tiny_references["llama"], adapter=tmp_path / "trained", top_layers=None, rank=16
    )
    record = job.forget(trained, method("altpo"), some, chosen, tmp_path / "out")
    assert record.texts["forget"] == 2


def test_what_is_written_of_full_weights_is_what_was_measured(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    """Steps of 1e-6 are below the spacing of bfloat16 and must not be rounded away."""
    small = {**SETTINGS, "dtype": "bfloat16", "learning_rate": 1e-6}
    given = {"full": True, "top_layers": 2, "dtype": "bfloat16"}
    aim = job.target(tiny_references["llama"], **given)
    record = job.forget(aim, method("graddiff"), TEXTS, job.settings(small), tmp_path / "out")
    assert record.start != record.end
    assert digest(job.target(str(tmp_path / "out"), **given).start) == record.end


@pytest.mark.parametrize("full", [False, True])
def test_a_job_cut_off_while_it_writes_goes_on(
    tiny_references: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    aim, chosen = _target(tiny_references["llama"], full=full), job.settings(SETTINGS)
    out, place = tmp_path / "out", "llm_unlearn.forget.job._write"

    def cut(_path: Path, _record: Record) -> None:
        raise KeyboardInterrupt  # the weights are there, their record is not

    with monkeypatch.context() as patched:
        patched.setattr(place, cut)
        with pytest.raises(KeyboardInterrupt):
            job.forget(aim, method("npo"), TEXTS, chosen, out)
    assert len(list(out.iterdir())) > 1
    with pytest.raises(InputError, match="unfinished job with other settings"):
        job.forget(aim, method("ga"), TEXTS, chosen, out)
    job.forget(aim, method("npo"), TEXTS, chosen, out)
    assert not [p.name for p in out.iterdir() if p.name.startswith(("unfinished", "."))]
    with pytest.raises(InputError, match="already"):
        job.forget(aim, method("npo"), TEXTS, chosen, out)


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
    left = sorted(p.name for p in (tmp_path / "cut").iterdir())
    assert left == [".forgetting.tmp", "unfinished.safetensors"]
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
    for odd in (0.0, math.nan, math.inf):
        with pytest.raises(InputError, match="strength"):
            job.sweep(aim, method("npo"), TEXTS, chosen, [0.5, odd], tmp_path / "none")
    with pytest.raises(InputError, match="above 0"):
        job.sweep(aim, method("npo"), TEXTS, chosen, [], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_sweep_cut_off_between_two_strengths_goes_on(
    tiny_references: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_unlearn.forget.run._SAVE_SECONDS", 0.0)
    aim, chosen, out = _target(tiny_references["llama"]), job.settings(SETTINGS), tmp_path / "sweep"
    write = job._write

    def cut(path: Path, record: Record) -> None:
        write(path, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "_write", cut)
        with pytest.raises(KeyboardInterrupt):
            job.sweep(aim, method("ga"), TEXTS, chosen, [0.5, 1.0], out)
    assert len(job.sweep(aim, method("ga"), TEXTS, chosen, [0.5, 1.0], out)) == 2
    assert not list(out.glob("unfinished*"))


def test_nothing_is_claimed_by_a_job_that_could_not_run(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    aim, out = _target(tiny_references["llama"]), tmp_path / "out"
    with pytest.raises(InputError, match="No weight was dampened"):
        job.forget(aim, method("ssd"), TEXTS, job.settings(SETTINGS), out)
    assert list(out.iterdir()) == []
    job.forget(aim, method("graddiff"), TEXTS, job.settings(SETTINGS), out)


def test_a_sweep_is_of_one_model(tiny_references: dict[str, str], tmp_path: Path) -> None:
    """A fresh adapter's weights depend on shapes alone: another model of the same shape is told apart."""
    model = AutoModelForCausalLM.from_pretrained(tiny_references["llama"])
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_references["llama"]).save_pretrained(tmp_path / "other")
    chosen, out = job.settings(SETTINGS), tmp_path / "sweep"
    job.sweep(_target(tiny_references["llama"]), method("ga"), TEXTS, chosen, [1.0], out)
    with pytest.raises(InputError, match="other settings, texts, weights"):
        job.sweep(_target(str(tmp_path / "other")), method("ga"), TEXTS, chosen, [1.0], out)


def test_a_strength_that_moves_nothing_is_a_point_at_the_start(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    """Two of six go, so a ratio is at most 3: alpha 4 / 0.5 dampens nothing, 4 / 3 something."""
    aim = _target(tiny_references["llama"], full=True)
    idle, moved = job.sweep(
        aim, method("ssd"), TEXTS, job.settings(SETTINGS), [0.5, 3.0], tmp_path / "sweep"
    )
    assert (idle.stop, idle.end, idle.after) == ("no effect", idle.start, idle.before)
    assert moved.end != moved.start
    found = json.loads((tmp_path / "sweep" / "frontier.json").read_text())
    assert [p["stop"] for p in found["points"]] == ["no effect", "one move"]


def test_a_frontier_shows_no_utility_that_was_not_measured(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    alone = job.Texts(TEXTS.forget)
    records = job.sweep(
        _target(tiny_references["llama"]),
        method("ga"),
        alone,
        job.settings(SETTINGS),
        [1.0],
        tmp_path / "sweep",
    )
    assert [r.verdict for r in records] == ["unmeasured"]
    drawing = (tmp_path / "sweep" / "frontier.svg").read_text()
    assert drawing.count("<circle") == 1  # the start
    assert "utility was not measured" in drawing
    assert "1.00 kept" not in drawing
    diverged = records[0].model_copy(
        update={"stop": "diverged", "after": records[0].after.model_copy(update={"utility": 0.2})}
    )
    before = diverged.before.model_copy(update={"utility": 0.4})
    shown = frontier_svg("ga", [diverged.model_copy(update={"before": before})])
    assert 'class="failed"' in shown
    assert "1 (diverged)" in shown


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
