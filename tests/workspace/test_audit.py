"""Audit: shards built anew equal what is there, and a changed one is told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small import Maker, answering_state, learned

from llm_unlearn import Workspace
from llm_unlearn.errors import NotFound
from llm_unlearn.rederive import audit
from llm_unlearn.sisa.train import TrainState
from llm_unlearn.takedown.request import Request

CORPUS = [learned(n, f"author-{n % 6}") for n in range(18)]


def _ready(make: Maker) -> Workspace:
    workspace = make()
    workspace.ingest(CORPUS)
    workspace.train()
    return workspace


def test_what_is_there_equals_what_is_derived_and_nothing_is_written(make: Maker) -> None:
    workspace = _ready(make)
    before = answering_state(workspace)
    files = {p: p.stat().st_mtime_ns for p in workspace.path.rglob("*") if p.is_file()}
    found = audit(workspace.opened)
    assert found.holds
    assert {c.name for c in found.checkpoints} == set(workspace.opened.checkpoints.listed())
    assert {c.verdict for c in found.checkpoints} == {"equal"}
    assert all(c.derived == c.found for c in found.checkpoints)
    assert found.claims == ()
    assert answering_state(workspace) == before
    after = {p: p.stat().st_mtime_ns for p in workspace.path.rglob("*") if p.is_file()}
    assert after.keys() == files.keys()
    assert {p for p in files if after[p] != files[p]} <= {
        workspace.path / "workspace.db-shm",
        workspace.path / "workspace.db-wal",
    }


def test_the_last_receipt_is_held_to_its_word(make: Maker) -> None:
    workspace = _ready(make)
    workspace.takedown(subject="author-2", probe=False)
    claims = audit(workspace.opened).claims
    assert {c.shard for c in claims} == {0, 1}
    assert {c.verdict for c in claims} == {"equal"}
    # a later generation adds slices; the receipt's adapter is one of those derived
    workspace.ingest([learned(n, "newcomer") for n in range(40, 43)])
    workspace.train()
    found = audit(workspace.opened)
    assert found.holds
    assert {c.verdict for c in found.claims} == {"equal"}


def test_what_is_fenced_after_a_receipt_is_no_tampering(make: Maker) -> None:
    workspace = _ready(make)
    workspace.takedown(subject="author-2", probe=False)
    vault, layout = workspace.opened.vault, workspace.opened.layout
    home = layout.shard(vault.mark("subject", "author-3"))
    request = Request.internal(subject="author-3")
    workspace.desk.submit([request])
    found = audit(workspace.opened)
    assert found.holds
    assert {c.shard: c.verdict for c in found.claims} == {
        home: "documents changed since",
        1 - home: "equal",
    }
    workspace.train()  # without what is fenced: the receipt's checkpoint is gone
    found = audit(workspace.opened)
    assert found.holds
    assert {c.shard: c.verdict for c in found.claims}[home] == "cannot be compared"
    workspace.desk.withdraw(request.id)
    workspace.train()
    assert {c.verdict for c in audit(workspace.opened).claims} == {"equal"}


def test_an_adapter_trained_on_something_else_is_different(make: Maker) -> None:
    workspace = _ready(make)
    opened = workspace.opened
    part = next(s.serving for s in opened.states() if s.serving)
    name, item = part.name, opened.checkpoints.listed()[part.name]
    state = opened.checkpoints.load(item)
    key = next(iter(state.adapter))
    forged = TrainState(
        {**state.adapter, key: state.adapter[key] + 1e-3}, state.moments, state.step
    )
    opened.checkpoints.dispose([item])
    opened.checkpoints.save(part, forged)
    # a receipt over it names it: what is asked for gives another
    gone = learned(50, "author-0")
    workspace.ingest([gone])
    workspace.takedown(ids=[gone.id], probe=False)
    found = audit(opened, [item.shard])
    assert not found.holds
    assert [c.name for c in found.checkpoints if c.verdict == "different"] == [name]
    assert [c.verdict for c in found.claims] == ["different"]
    assert audit(opened, [1 - item.shard]).holds


def test_damaged_missing_and_stale_have_their_words(make: Maker) -> None:
    workspace = _ready(make)
    opened = workspace.opened
    names = sorted(opened.checkpoints.listed())
    opened.checkpoints.path(names[0]).unlink()
    last = opened.checkpoints.listed()[names[-1]]
    opened.checkpoints.dispose([last])
    found = {c.name: c.verdict for c in audit(opened).checkpoints}
    assert found[names[0]] == "damaged"
    assert found[names[-1]] == "missing"
    part = next(p for s in opened.states() for p in s.wanted if p.name == names[-1])
    other = replace(part, inputs=b"x" * 32)
    opened.checkpoints.save(other, opened.checkpoints.load(opened.checkpoints.listed()[names[1]]))
    assert {c.name: c.verdict for c in audit(opened).checkpoints}[names[-1]] == "stale"


def test_no_such_shard(make: Maker) -> None:
    with pytest.raises(NotFound, match="no shard 7"):
        audit(_ready(make).opened, [7])
