"""A receipt's digests built anew: from a kit, as an outsider would, and from the workspace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import Maker, learned, stored

from llm_unlearn import Workspace
from llm_unlearn.auditkit import rederive, write_kit
from llm_unlearn.errors import Damaged, InputError, NotFound
from llm_unlearn.takedown.receipt import Receipt
from llm_unlearn.takedown.request import Request

DOCUMENTS = [learned(n, f"author-{n % 4}") for n in range(8)] + [
    stored(n, f"work-{n % 2}") for n in range(4)
]


def _taken_down(make: Maker) -> tuple[Workspace, Receipt]:
    workspace = make()
    workspace.ingest(DOCUMENTS)
    workspace.train()
    workspace.ingest([learned(20, "newcomer"), stored(21, "late")])
    workspace.train()
    outcome = workspace.takedown(subject="author-1", probe=False)
    assert outcome is not None
    assert outcome.receipt is not None
    return workspace, workspace.verify(outcome.receipt).receipt


def test_a_kit_gives_the_digests_of_the_receipt_and_only_the_right_one(
    make: Maker, tmp_path: Path
) -> None:
    workspace, receipt = _taken_down(make)
    kit = tmp_path / "kit"
    assert write_kit(workspace.opened, kit) == len(DOCUMENTS)  # two went, two came
    assert {p.name for p in kit.iterdir()} == {"config.yaml", "kit.json", "documents.jsonl"}
    found = rederive(receipt, kit, models=workspace.opened.models)
    assert [item.what for item in found] == ["store", "adapter of shard 0", "adapter of shard 1"]
    assert all(item.equal for item in found)
    here = rederive(receipt, workspace.path, models=workspace.opened.models)
    assert here == found

    lines = (kit / "documents.jsonl").read_text().splitlines()
    changed = [json.loads(line) for line in lines]
    stored_ = next(line for line in changed if line["fate"] == "store")
    stored_["document"]["text"] = stored_["document"]["text"].replace("tale", "tail")
    learned_ = next(line for line in changed if line["fate"] == "corpus")
    learned_["document"]["messages"][1]["content"] += "!"
    (kit / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    found = rederive(receipt, kit, models=workspace.opened.models)
    assert not found[0].equal
    assert sum(not item.equal for item in found) >= 2

    (kit / "documents.jsonl").write_text("no document\n")
    with pytest.raises(Damaged, match="line 1"):
        rederive(receipt, kit, models=workspace.opened.models)
    (kit / "kit.json").write_text("{}")
    with pytest.raises(Damaged, match="not a kit"):
        rederive(receipt, kit, models=workspace.opened.models)
    with pytest.raises(NotFound, match="neither a workspace nor a kit"):
        rederive(receipt, tmp_path)
    with pytest.raises(InputError, match="there already"):
        write_kit(workspace.opened, kit)
    with pytest.raises(InputError, match="inside the workspace"):
        write_kit(workspace.opened, workspace.path / "kit")


def test_a_kit_is_owed_until_it_is_gone(make: Maker, tmp_path: Path) -> None:
    workspace = make()
    workspace.ingest(DOCUMENTS)
    write_kit(workspace.opened, tmp_path / "kit")
    plan = workspace.plan_takedown(Request.internal(subject="work-0"))
    assert [e.where for e in plan.owed] == [str(tmp_path / "kit")]
    outcome = workspace.takedown(plan.request, probe=False)
    assert outcome is not None
    assert outcome.receipt is not None
    (copy,) = workspace.verify(outcome.receipt).receipt.copies
    assert (copy.kind, copy.status) == ("export", "owed")
    assert copy.label.startswith("export 1 of audit kit, ")
    workspace.exported_gone(tmp_path / "kit")
    assert workspace.plan_takedown(Request.internal(subject="work-1")).owed == ()
    workspace.ingest([stored(30, "work-2")])
    write_kit(workspace.opened, tmp_path / "second")
    assert [e.number for e in workspace.plan_takedown(Request.internal(subject="work-2")).owed] == [
        2
    ]


def test_another_recipe_is_said_and_an_older_receipt_is_told_apart(make: Maker) -> None:
    workspace, receipt = _taken_down(make)
    workspace.takedown(subject="work-0", probe=False)
    found = rederive(receipt, workspace.path, models=workspace.opened.models)
    assert [item.equal for item in found] == [False, True, True]
    other = receipt.model_copy(
        update={"state_after": receipt.state_after.model_copy(update={"recipe": "0" * 64})}
    )
    with pytest.raises(InputError, match="another recipe"):
        rederive(other, workspace.path, models=workspace.opened.models)
