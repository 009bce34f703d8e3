"""A receipt's probes beside shards that were built from the documents that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import Maker, answering_state, learned

from llm_unlearn import Workspace
from llm_unlearn.config import dump_config
from llm_unlearn.errors import RecipeMismatch
from llm_unlearn.opened import Opened
from llm_unlearn.sisa.checkpoints import Checkpoints, Listed
from llm_unlearn.sisa.train import TrainState
from llm_unlearn.takedown.probing import NAMES, probe
from llm_unlearn.takedown.receipt import decimal
from llm_unlearn.takedown.schema import Probe

CORPUS = [learned(n, f"author-{n % 6}") for n in range(18)]
GONE = "author-2"
MINE = [d for d in CORPUS if d.subject == GONE]


def _ready(make: Maker, name: str = "ws", **training: object) -> Workspace:
    workspace = make(name, never_had=name == "ws", epochs=6, learning_rate=1e-2, **training)
    workspace.ingest([d for d in CORPUS if name == "ws" or d.subject != GONE])
    workspace.train()
    return workspace


def _probes(workspace: Workspace, **how: object) -> tuple[Probe, ...]:
    outcome = workspace.takedown(subject=GONE, **how)  # type: ignore[arg-type]
    assert outcome is not None
    assert outcome.receipt is not None
    probes = workspace.verify(outcome.receipt).receipt.probes
    assert not isinstance(probes, str)
    return probes


def _asked(never: Workspace) -> dict[str, str]:
    """What a workspace that never had the text gives back of it, in a receipt's figures."""
    opened = never.opened
    shard = opened.layout.shard(opened.vault.mark("subject", GONE))
    adapter = next(opened.adapter(s) for s in opened.states() if s.shard == shard)
    answers = opened.config.answering.max_new_tokens
    host, longest = opened.models.host, opened.training.max_tokens
    found = probe(host, adapter, MINE, max_tokens=longest, max_new_tokens=answers)
    return {name: decimal(value) for name, value in found.means().items()}


@pytest.mark.parametrize("training", [{}, {"orders": 2}, {"blocks": True, "slicing": "sequential"}])
def test_they_are_what_a_workspace_without_the_text_gives(
    make: Maker, training: dict[str, object]
) -> None:
    workspace, never = _ready(make, **training), _ready(make, "never", **training)
    probes = _probes(workspace)
    asked = _asked(never)
    assert [p.never_had for p in probes] == [asked[name] for name in NAMES]
    assert [p.never_had for p in probes] == [p.after for p in probes]
    assert probes[0].before != probes[0].never_had
    assert answering_state(workspace) == answering_state(never)  # building it left nothing


def test_a_rolled_back_shard_stands_beside_the_whole_one(make: Maker) -> None:
    workspace, never = _ready(make, shards=1), _ready(make, "never", shards=1)
    probes = _probes(workspace, after="rollback")
    asked = _asked(never)
    assert [p.never_had for p in probes] == [asked[name] for name in NAMES]
    assert probes[0].after == probes[0].rolled_back != probes[0].never_had


def test_only_touched_shards_are_read(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = _ready(make)
    home = workspace.opened.layout.shard(workspace.opened.vault.mark("subject", GONE))
    read: set[int] = set()
    load = Checkpoints.load

    def noted(self: Checkpoints, listed: Listed) -> TrainState:
        read.add(listed.shard)
        return load(self, listed)

    monkeypatch.setattr(Checkpoints, "load", noted)
    _probes(workspace, after="rollback")
    assert read == {home}


def test_where_nothing_stays_it_is_the_base_model(make: Maker) -> None:
    workspace = make("ws", never_had=True, shards=1)
    workspace.ingest(MINE)
    workspace.train()
    probes = _probes(workspace)
    assert [p.never_had for p in probes] == [p.after for p in probes]


def test_unasked_or_impossible_the_receipt_says_so(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _ready(make, "ws")
    checks = Opened.check_recipe

    def fails(opened: Opened) -> None:
        raise RecipeMismatch("Other bits here.", "Use the machine it was trained on.")

    monkeypatch.setattr(Opened, "check_recipe", fails)
    outcome = workspace.takedown(subject=GONE, after="rollback")
    monkeypatch.setattr(Opened, "check_recipe", checks)
    assert outcome is not None
    assert outcome.receipt is not None
    receipt = workspace.verify(outcome.receipt).receipt
    assert {p.never_had for p in receipt.probes if not isinstance(p, str)} == {"not built"}
    assert any("none was built" in line for line in receipt.does_not_prove)


def test_the_setting_is_read_from_the_workspace(make: Maker, tmp_path: Path) -> None:
    workspace = make("ws")
    workspace.ingest(CORPUS)
    workspace.train()
    config = workspace.opened.config
    asked = config.takedown.model_copy(update={"never_had": True})
    workspace.close()
    written = config.model_copy(update={"takedown": asked})
    (tmp_path / "ws" / "config.yaml").write_text(dump_config(written))
    with Workspace.open(tmp_path / "ws", keys=tmp_path / "ws-keys") as again:
        probes = _probes(again)
    assert "not built" not in {p.never_had for p in probes}
