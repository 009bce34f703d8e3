"""What follows a deletion: retraining, a roll-back that waits, or a dropped shard."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small import Maker, answering_state, learned

from llm_unlearn import Workspace
from llm_unlearn.pace import Pace, learn_pace, read_pace, read_sizes, work
from llm_unlearn.takedown.journal import After
from llm_unlearn.takedown.request import Request

CORPUS = [learned(n, f"author-{n % 9}") for n in range(27)]


def _ready(make: Maker, name: str = "ws", without: tuple[str, ...] = ()) -> Workspace:
    workspace = make(name, slices=3)
    workspace.ingest([d for d in CORPUS if d.subject not in without])
    workspace.train()
    return workspace


def _home(workspace: Workspace, subject: str) -> int:
    return workspace.opened.layout.shard(workspace.opened.vault.mark("subject", subject))


def _part_of(some: dict[str, bytes], whole: dict[str, bytes]) -> bool:
    return all(whole.get(name) == data for name, data in some.items())


@pytest.mark.parametrize("after", ["rollback", "drop"])
def test_every_file_present_is_never_hads_and_all_return(make: Maker, after: After) -> None:
    workspace, never = _ready(make), _ready(make, "never", without=("author-2",))
    home = _home(workspace, "author-2")
    outcome = workspace.takedown(subject="author-2", after=after, probe=False)
    assert outcome is not None
    assert outcome.state == "receipted"
    now, whole = answering_state(workspace), answering_state(never)
    assert _part_of(now, whole)
    missing = {name for name in whole if name not in now}
    assert missing
    assert {name.split(".")[0] for name in missing} == {f"shard-{home:02d}"}
    shard = next(s for s in workspace.status().shards if s.shard == home)
    if after == "drop":
        assert missing == {n for n in whole if n.startswith(f"shard-{home:02d}")}
        assert shard.state == "dropped"
        assert workspace.train().built == ()  # left alone until asked for
        assert workspace.train(bring_back=True).built
    else:
        assert shard.state in ("rolled back", "untrained")
        assert set(workspace.train().built) == missing
    # each `train` closes a generation, which moves no document that is here
    assert answering_state(workspace) == whole
    assert outcome.receipt is not None
    receipt = workspace.verify(outcome.receipt).receipt
    assert [s.retrained for s in receipt.done.shards if s.shard == home] in ([0], [])
    assert any("retrain" in line for line in receipt.does_not_prove)


def test_a_dropped_shard_stays_dropped_through_another_takedown(make: Maker) -> None:
    workspace = _ready(make)
    home = _home(workspace, "author-2")
    workspace.takedown(subject="author-2", after="drop", probe=False)
    twin = next(
        f"author-{n}" for n in (0, 1, *range(3, 9)) if _home(workspace, f"author-{n}") == home
    )
    plan_steps = [w.steps for w in workspace.plan_takedown(_request(twin)).shards]
    assert sum(plan_steps) == 0
    workspace.takedown(subject=twin, probe=False)
    assert not [i for i in workspace.opened.checkpoints.listed().values() if i.shard == home]
    workspace.train(bring_back=True)
    never = _ready(make, "never", without=("author-2", twin))
    assert answering_state(workspace) == answering_state(never)


def _request(subject: str) -> Request:
    return Request.internal(subject=subject)


def test_several_deletions_in_one_shard_are_retrained_once(make: Maker) -> None:
    workspace = _ready(make)
    home = _home(workspace, "author-0")
    gone = [f"author-{n}" for n in range(9) if _home(workspace, f"author-{n}") == home][:2]
    for subject in gone:
        workspace.takedown(subject=subject, after="rollback", probe=False)
    missing = [p.name for s in workspace.opened.states() for p in s.missing]
    trained = workspace.train()
    assert list(trained.built) == missing
    assert len(set(trained.built)) == len(trained.built)
    never = _ready(make, "never", without=tuple(gone))
    assert answering_state(workspace) == answering_state(never)


def test_dropping_killed_half_way_is_finished(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = _ready(make)
    home = _home(workspace, "author-2")

    class Killed(BaseException):
        pass

    def killed(state: str) -> None:
        if state == "deleted":
            raise Killed

    with pytest.raises(Killed):
        workspace.takedown(subject="author-2", after="drop", probe=False, on_state=killed)
    with Workspace.open(workspace.path, models=workspace.opened.models) as again:
        (outcome,) = again.resume()
        assert outcome.state == "receipted"
        assert not [i for i in again.opened.checkpoints.listed().values() if i.shard == home]
        assert again.status().shards[home].state == "dropped"


def test_the_expected_time_counts_bytes(make: Maker) -> None:
    workspace = _ready(make)
    opened = workspace.opened
    sizes = read_sizes(opened.database)
    state = opened.states()[0]
    per_slice = [sum(sizes[r.handle] for r in part.records) for part in state.wanted]
    passes = 1  # epochs 2, 3 slices: round(4 / 4)
    one = replace(state, lanes=(replace(state.best, clean=1),))
    by_hand = passes * sum(sum(per_slice[: k + 1]) for k in range(1, len(per_slice)))
    assert work([one], opened.training, sizes) == by_hand
    with opened.database.transaction():
        opened.database.set_value("pace", b'{"seconds": 12, "work": 2400, "loading": 4}')
    pace = read_pace(opened.database)
    assert pace == Pace(12, 2400, 4)
    assert pace.expected(1000, loaded=False) == 9
    assert pace.expected(1000, loaded=True) == 5
    assert pace.expected(0, loaded=False) == 0
    learn_pace(opened.database, 6, 600, None)  # 12/2 + 6 over 2400/2 + 600
    assert read_pace(opened.database) == Pace(12, 1800, 4)
