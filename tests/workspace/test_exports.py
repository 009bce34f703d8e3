"""Exports: plain PEFT folders, registered, and owed once what they learned must go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from small import Maker, learned
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from llm_unlearn import Workspace
from llm_unlearn.config import dump_config
from llm_unlearn.errors import InputError, NotFound, RecipeMismatch
from llm_unlearn.exports import Exports
from llm_unlearn.models import attention
from llm_unlearn.takedown.request import Request

CORPUS = [learned(n, f"author-{n % 6}") for n in range(18)]


def _ready(make: Maker) -> Workspace:
    workspace = make()
    workspace.ingest(CORPUS)
    workspace.train()
    return workspace


def _home(workspace: Workspace, subject: str) -> int:
    mark = workspace.opened.vault.mark("subject", subject)
    return workspace.opened.layout.shard(mark)


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_it_and_computes_the_same(make: Maker, tmp_path: Path) -> None:
    workspace = _ready(make)
    out = tmp_path / "out" / "adapter"
    export = workspace.export(1, out)
    assert {p.name for p in out.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    opened = workspace.opened
    plain = AutoModelForCausalLM.from_pretrained(opened.config.model, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(out))
    ids = torch.arange(5, 60)[None]
    listed = opened.checkpoints.listed()[export.checkpoint]
    with opened.models.host.using(opened.checkpoints.load(listed).adapter), torch.no_grad():
        ours = opened.models.host.model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours, rtol=1e-4, atol=1e-5)
        plain.set_attn_implementation(attention.NAME)  # then to the last bit
        assert torch.equal(theirs(input_ids=ids).logits, ours)
        with theirs.disable_adapter():
            assert not torch.allclose(theirs(input_ids=ids).logits, ours, rtol=1e-3, atol=1e-3)


def test_a_takedown_owes_the_exports_that_learned_it(make: Maker, tmp_path: Path) -> None:
    workspace = _ready(make)
    home = _home(workspace, "author-2")
    mine = workspace.export(home, tmp_path / "mine")
    workspace.export(1 - home, tmp_path / "other")
    plan = workspace.plan_takedown(_request("author-2"))
    assert [e.where for e in plan.owed] == [str(tmp_path / "mine")]
    outcome = workspace.takedown(plan.request, probe=False)
    assert outcome is not None
    assert outcome.receipt is not None
    receipt = workspace.verify(outcome.receipt).receipt
    assert [(c.kind, c.label, c.status) for c in receipt.copies] == [("export", mine.label, "owed")]
    assert any("1 still owed" in line for line in receipt.does_not_prove)
    assert str(tmp_path) not in outcome.receipt.read_text()
    assert outcome.owed == (mine.label,)
    # what was exported after it had gone owes nothing
    clean = workspace.export(home, tmp_path / "clean")
    assert clean.number == 3
    other = next(f"author-{n}" for n in (0, 1, 3, 4, 5) if _home(workspace, f"author-{n}") == home)
    assert {e.number for e in workspace.plan_takedown(_request(other)).owed} == {1, 3}
    assert [e.number for e in workspace.exported_gone(tmp_path / "mine")] == [1]
    assert {e.number for e in workspace.plan_takedown(_request(other)).owed} == {3}
    with pytest.raises(NotFound, match="registered as still there"):
        workspace.exported_gone(tmp_path / "mine")


def _request(subject: str) -> Request:
    return Request.internal(subject=subject)


def test_the_register_is_sealed_and_survives(make: Maker, tmp_path: Path) -> None:
    workspace = _ready(make)
    made = workspace.export(0, tmp_path / "a-telling-name")
    data = b"".join(p.read_bytes() for p in workspace.path.rglob("*") if p.is_file())
    assert b"a-telling-name" not in data
    with Workspace.open(workspace.path) as again:
        assert Exports(again.opened.database, again.opened.keyring).all() == [made]
    config = json.loads((tmp_path / "a-telling-name" / "adapter_config.json").read_text())
    assert config["r"] == 2


def test_a_killed_export_leaves_nothing_in_the_clear(make: Maker, tmp_path: Path) -> None:
    workspace = _ready(make)
    out = tmp_path / "out" / "adapter"
    code = f"""
import os, signal, safetensors.torch
from llm_unlearn import Workspace
written = safetensors.torch.save_file
def killed(*given):
    written(*given)
    os.kill(os.getpid(), signal.SIGKILL)
with Workspace.open({str(workspace.path)!r}) as workspace:
    workspace.opened.models.host
    safetensors.torch.save_file = killed
    workspace.export(0, {str(out)!r})
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

    def kill() -> None:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
        assert done.returncode == -signal.SIGKILL
        (left,) = out.parent.iterdir()
        assert (left / "adapter_model.safetensors").is_file()

    kill()
    workspace.ingest([])  # any next writer
    assert not list(out.parent.iterdir())
    register = Exports(workspace.opened.database, workspace.opened.keyring)
    assert [(e.where, e.gone) for e in register.all()] == [(str(out), None)]
    kill()
    assert len(register.settle(out)) == 2
    assert not list(out.parent.iterdir())
    workspace.export(0, out)
    assert [p.name for p in out.parent.iterdir()] == ["adapter"]


def _edit(workspace: Workspace, model: str | None = None, **training: object) -> None:
    config = workspace.config
    changed = config.model_copy(
        update={
            "model": model or config.model,
            "training": config.training.model_copy(update=training),
        }
    )
    (workspace.path / "config.yaml").write_text(dump_config(changed))


def test_an_edited_config_changes_neither_answers_nor_exports(make: Maker, tmp_path: Path) -> None:
    workspace = _ready(make)
    questions = [document.messages[0].content for document in CORPUS[:6]]
    before = workspace.ask_many(questions, ["staff"])
    assert any(answer.origin == "adapter" for answer in before)
    workspace.export(0, tmp_path / "before")
    _edit(workspace, lora_alpha=4096, lora_rank=3, top_layers=4, dtype="bfloat16")
    with Workspace.open(workspace.path) as again:
        assert again.ask_many(questions, ["staff"]) == before
        again.export(0, tmp_path / "after")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "after" / name).read_bytes() == (
                tmp_path / "before" / name
            ).read_bytes()
        with pytest.raises(RecipeMismatch, match="lora_alpha"):
            again.train()
        again.train(retrain_all=True)  # adopted from here on
        again.export(0, tmp_path / "adopted")
        config = json.loads((tmp_path / "adopted" / "adapter_config.json").read_text())
        assert (config["lora_alpha"], config["r"]) == (4096, 3)
        assert len(config["layers_to_transform"]) == 4
        assert again.ask_many(questions, ["staff"]) != before


def test_another_base_model_neither_answers_nor_is_exported(make: Maker, tmp_path: Path) -> None:
    workspace = _ready(make)
    _edit(workspace, tiny_model(tmp_path / "other", layers=3, seed=5), top_layers=3)
    with Workspace.open(workspace.path) as again:
        question = CORPUS[0].messages[0].content
        with pytest.raises(RecipeMismatch, match="not the base model"):
            again.ask(question, ["staff"])
        with pytest.raises(RecipeMismatch, match="not the base model"):
            again.export(0, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        again.train(retrain_all=True)
        assert again.ask(question, ["staff"]).origin == "adapter"


def test_what_cannot_be_exported(make: Maker, tmp_path: Path) -> None:
    workspace = make()
    workspace.ingest(CORPUS)
    with pytest.raises(NotFound, match="No adapter serves for shard 0"):
        workspace.export(0, tmp_path / "x")
    workspace.train()
    with pytest.raises(NotFound, match="shard 9"):
        workspace.export(9, tmp_path / "x")
    with pytest.raises(InputError, match="inside the workspace"):
        workspace.export(0, workspace.path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "f").write_text("f")
    with pytest.raises(InputError, match="is there already"):
        workspace.export(0, tmp_path / "full")
    (tmp_path / "file").write_text("f")
    with pytest.raises(InputError, match="is no folder"):
        workspace.export(0, tmp_path / "file" / "x")
    assert not list(tmp_path.glob(".x*"))
