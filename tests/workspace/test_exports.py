"""Exports: plain PEFT folders, registered, and owed once what they learned must go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from small import Maker, learned
from transformers import AutoModelForCausalLM

from llm_unlearn import Workspace
from llm_unlearn.errors import InputError, NotFound
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
