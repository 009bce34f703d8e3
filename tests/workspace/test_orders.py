"""Several orders of slices, blocks of layers: a deletion serves the order that it left standing."""

from __future__ import annotations

import pytest
from small import Maker, answering_state, learned

from llm_unlearn import Workspace
from llm_unlearn.sisa.checkpoints import serialise

CORPUS = [learned(n, f"author-{n % 12}") for n in range(24)]


def _ready(make: Maker, name: str, *, blocks: bool, without: str = "") -> Workspace:
    workspace = make(name, shards=1, slices=3, orders=3, blocks=blocks, top_layers=3)
    workspace.ingest([d for d in CORPUS if d.subject != without])
    workspace.train()
    return workspace


def _serving(workspace: Workspace) -> bytes:
    (state,) = workspace.opened.states()
    assert state.serving
    return serialise(
        workspace.opened.checkpoints.load(workspace.opened.checkpoints.listed()[state.serving.name])
    )


@pytest.mark.parametrize("blocks", [False, True])
def test_the_order_that_stands_serves_until_all_are_trained_again(
    make: Maker, blocks: bool
) -> None:
    workspace = _ready(make, "ws", blocks=blocks)
    opened = workspace.opened
    (whole,) = opened.states()
    assert whole.best is whole.lanes[0]
    assert [lane.clean for lane in whole.lanes] == [3, 3, 3]
    # a subject of the slice with which the first order begins leaves the one that begins after it
    first = {record.subject for record in whole.wanted[0].records}
    gone = next(d.subject for d in CORPUS if opened.vault.mark("subject", d.subject) in first)
    never = _ready(make, "never", blocks=blocks, without=gone)

    outcome = workspace.takedown(subject=gone, after="rollback", probe=False)
    assert outcome is not None
    assert outcome.receipt is not None
    receipt = workspace.verify(outcome.receipt).receipt
    assert len({c.slice for c in receipt.done.checkpoints}) == len(receipt.done.checkpoints)
    (left,) = opened.states()
    assert sorted(lane.clean for lane in left.lanes) == [0, 1, 2]
    assert left.clean == 2
    assert left.serving
    assert left.serving.order == 1
    assert sum(len(p.records) for p in left.wanted[: left.clean]) == left.best.documents
    state = workspace.status().shards[0]
    assert (state.state, state.clean, state.slices) == ("rolled back", 2, 3)
    theirs = answering_state(never)
    assert all(theirs[name] == data for name, data in answering_state(workspace).items())
    answer = workspace.ask_many([CORPUS[0].messages[0].content], ("staff",))[0]
    assert answer.origin in ("adapter", "declined", "store")

    assert len(workspace.train().built) == 6
    assert answering_state(workspace) == theirs
    assert _serving(workspace) == _serving(never)
    assert workspace.status().shards[0].state == "clean"
    audit = workspace.audit()
    assert audit.holds
    assert {c.verdict for c in audit.checkpoints} == {"equal"}


def test_orders_that_are_not_trained_yet_are_told(make: Maker) -> None:
    workspace = _ready(make, "ws", blocks=True)
    opened = workspace.opened
    spare = [i for i in opened.checkpoints.listed().values() if "order-02" in i.name]
    opened.checkpoints.dispose(spare)
    assert workspace.status().shards[0].state == "clean, spare orders missing"
    assert len(workspace.train().built) == 3


def test_documents_that_come_later_train_their_blocks_again(make: Maker) -> None:
    workspace = _ready(make, "ws", blocks=True)
    before = {n: b for n, b in answering_state(workspace).items() if n.startswith("shard")}
    workspace.ingest([learned(90 + n, f"late-{n}") for n in range(4)])
    workspace.train()
    after = answering_state(workspace)
    assert {n: after[n] for n in before} == before
    assert any("generation-002" in name for name in after)
    assert workspace.audit().holds
