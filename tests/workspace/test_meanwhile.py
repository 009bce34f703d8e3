"""What changes between the steps of a takedown: holds, new texts, trainings, kills, settings."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from small import Maker, answering_state, learned, stored, tiny_config

from llm_unlearn import Document, Workspace
from llm_unlearn.cli.desk import review
from llm_unlearn.cli.output import Output
from llm_unlearn.errors import InputError, NotFound, RecipeMismatch
from llm_unlearn.opened import Models
from llm_unlearn.takedown import looking
from llm_unlearn.takedown.journal import Journal
from llm_unlearn.takedown.receipt import Receipt
from llm_unlearn.takedown.request import Claimant, Request, read_requests
from llm_unlearn.takedown.tombstones import Tombstones

STORED = [stored(n, f"work-{n % 3}") for n in range(6)]
LEARNED = [learned(n, f"author-{n % 6}") for n in range(12)]
CLAIMANT = Claimant(name="Perpetua Lind", contact="perpetua@mail.example", capacity="data subject")


def _request(id: str = "R-1", **named: Any) -> Request:
    return Request(
        id=id,
        kind="gdpr",
        basis="GDPR Article 17(1)(b)",
        claimant=CLAIMANT,
        received=datetime(2031, 1, 31, tzinfo=UTC),
        **named,
    )


def _full(make: Maker, name: str = "ws") -> Workspace:
    workspace = make(name)
    workspace.ingest(STORED)
    return workspace


def _trained(make: Maker, name: str = "ws", without: tuple[str, ...] = ()) -> Workspace:
    workspace = make(name)
    workspace.ingest([d for d in [*LEARNED, *STORED] if d.subject not in without])
    workspace.train()
    return workspace


def _searched(workspace: Workspace) -> set[str]:
    hits = workspace.opened.store.search("tale", groups={"staff"}, k=50)
    return {hit.document for hit in hits}


def _near(id: str) -> Document:
    copy = stored(0, "work-0")
    return copy.model_copy(
        update={"id": id, "subject": id, "text": f"Once more. {copy.text} The end."}
    )


def _receipt(workspace: Workspace, outcome: Any) -> Receipt:
    assert outcome is not None
    assert outcome.receipt is not None
    return workspace.verify(outcome.receipt).receipt


def _subjects(workspace: Workspace, shard: int) -> list[str]:
    """The subjects of a shard, in the order of its slices."""
    opened, found = workspace.opened, dict[str, None]()
    for part in opened.wanted()[shard]:
        found |= {opened.document(record).subject: None for record in part.records}
    return list(found)


def _stopped(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


# --- while copies are looked for


@pytest.mark.parametrize("change", ["added", "held"])
def test_what_changes_while_copies_are_looked_for_is_seen(
    make: Maker, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    workspace = _full(make)
    workspace.ingest([_near("mirror")])
    original, calls = looking.plans, []

    def late(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        calls.append(1)
        if len(calls) == 1 and change == "added":
            workspace.opened.store.add([_near("late")])
        elif len(calls) == 1:
            workspace.opened.store.hold(id="mirror")
        return found

    monkeypatch.setattr(looking, "plans", late)
    workspace.desk.submit([_request(subject="work-0")])
    assert len(calls) == 2
    assert not {"mirror", "late"} & _searched(workspace)
    assert workspace.where("mirror").state == ("held" if change == "held" else "fenced")


# --- between approval and run


def test_a_hold_that_comes_after_approval_is_kept(make: Maker) -> None:
    workspace = _full(make)
    workspace.desk.submit([_request(subject="work-0")])
    workspace.desk.approve("R-1")
    workspace.opened.store.hold(id="work-0/s3")
    (outcome,) = workspace.desk.run()
    receipt = _receipt(workspace, outcome)
    assert workspace.where("work-0/s3").state == "held"
    assert (receipt.outcome, receipt.done.documents_held) == ("held", 1)
    assert (receipt.done.documents_deleted.store, receipt.done.keys_destroyed) == (1, 1)
    assert workspace.opened.store.release(id="work-0/s3") == 0  # it must not answer again
    with pytest.raises(NotFound):
        workspace.where("work-0/s3")


def test_a_hold_that_comes_at_the_question_is_kept(make: Maker) -> None:
    workspace = _full(make)

    def late(_plan: Any) -> bool:
        workspace.opened.store.hold(id="work-0/s3")
        return True

    receipt = _receipt(workspace, workspace.takedown(subject="work-0", probe=False, confirm=late))
    assert workspace.where("work-0/s3").state == "held"
    assert (receipt.done.documents_held, receipt.done.documents_deleted.store) == (1, 1)
    assert receipt.scan != "not scanned"
    assert receipt.scan.findings == 0


def test_a_hold_that_ends_before_the_run_is_not_counted(make: Maker) -> None:
    workspace = _full(make)
    workspace.opened.store.hold(id="work-0/s3")
    workspace.desk.submit([_request(subject="work-0")])
    workspace.desk.approve("R-1")
    workspace.opened.store.release(id="work-0/s3")
    (outcome,) = workspace.desk.run()
    assert _receipt(workspace, outcome).done.documents_held == 0


@pytest.mark.parametrize("earlier", [False, True])
def test_a_new_text_under_an_old_id_is_not_what_was_planned(make: Maker, earlier: bool) -> None:
    """A case of an earlier version does not know which text was planned: it goes by the id."""
    workspace = _full(make)
    workspace.desk.submit([_request(f"R-{n}", ids=("work-0/s0",)) for n in (1, 2)])
    for name in ("R-1", "R-2"):
        workspace.desk.approve(name)
    workspace.desk.run(["R-1"])
    fresh = Document(
        id="work-0/s0", subject="other", license="all-rights-reserved", text="A tale of pears."
    )
    assert workspace.ingest([fresh]).counts() == {"store": 1}
    journal = Journal(workspace.opened.database, workspace.opened.keyring)
    if earlier:
        row, case = next((r, c) for r, c in journal.open_cases() if c.request_id == "R-2")
        journal.advance(row, row.state, case.model_copy(update={"contents": []}))
    outcomes = workspace.desk.run(["R-2"])
    receipt = _receipt(workspace, outcomes[-1])
    assert receipt.done.documents_deleted.store == int(earlier)
    assert (receipt.outcome == "removed") is earlier
    if not earlier:
        assert workspace.where("work-0/s0").state == "live"
        assert any("before this request was carried out" in x for x in receipt.does_not_prove)


# --- a file of requests


@pytest.mark.parametrize("answer", ["no", "Ctrl-C"])
def test_no_to_a_file_takes_back_only_what_the_file_filed(make: Maker, answer: str) -> None:
    workspace = _full(make)
    workspace.desk.submit([_request(subject="work-0")])
    both = [_request(subject="work-0"), _request("R-2", subject="work-1")]
    if answer == "no":
        assert workspace.desk.takedown_many(both, confirm=lambda _plans: False) is None
    else:
        with pytest.raises(KeyboardInterrupt):
            workspace.desk.takedown_many(both, confirm=_stopped)
    assert [(row.id, row.state) for row in workspace.desk.all()] == [("R-1", "received")]
    assert workspace.where("work-0/s0").state == "fenced"
    assert workspace.where("work-1/s1").state == "live"


def test_what_was_acknowledged_is_not_forgotten_because_nothing_falls_under_it(make: Maker) -> None:
    workspace = _full(make)
    nothing = _request(text="Nobody ever wrote these words about a glass ship in the sand.")
    workspace.desk.submit([nothing])
    done = workspace.desk.takedown_many([nothing, _request("R-2", subject="work-1")])
    assert done is not None
    assert [name for name, _ in done.nothing] == ["R-1"]
    assert [row.state for row in workspace.desk.all()] == ["received", "receipted"]


# --- shards


def test_what_an_earlier_takedown_left_untrained_is_trained_with_its_shard(make: Maker) -> None:
    workspace = _trained(make)
    first, second, *_ = _subjects(workspace, 0)
    workspace.takedown(subject=first, after="rollback", probe=False)
    assert workspace.opened.states()[0].missing
    receipt = _receipt(workspace, workspace.takedown(subject=second, probe=False))
    assert not workspace.opened.states()[0].missing
    assert [s.shard for s in receipt.done.shards] == [0]
    assert receipt.done.shards[0].retrained > 0
    assert answering_state(workspace) == answering_state(_trained(make, "n", (first, second)))


def test_a_training_between_submission_and_approval_is_told(make: Maker) -> None:
    workspace = _trained(make)
    gone = _subjects(workspace, 0)[0]
    workspace.desk.submit([_request(subject=gone)])
    workspace.train()
    workspace.desk.approve("R-1")
    receipt = _receipt(workspace, workspace.desk.run(probe=True)[0])
    assert [(s.shard, s.retrained) for s in receipt.done.shards] == [(0, 0)]
    assert any("shard 0 was trained" in line for line in receipt.does_not_prove)
    assert receipt.probes != "not probed"
    assert {probe.before for probe in receipt.probes} == {"not measured"}
    assert "not measured" not in {probe.rolled_back for probe in receipt.probes[:1]}


def test_a_checkpoint_built_anew_is_not_measured_as_the_one_before(make: Maker) -> None:
    workspace = _trained(make)
    one, other = _subjects(workspace, 0)[0], _subjects(workspace, 1)[0]
    workspace.desk.submit([_request(subject=one), _request("R-2", subject=other)])
    workspace.desk.approve("R-1")
    workspace.desk.approve("R-2")
    workspace.train(shards=[0])  # the same names, without the text
    first, _ = workspace.desk.run(probe=True)
    probes = _receipt(workspace, first).probes
    assert probes != "not probed"
    assert {probe.before for probe in probes} == {"not measured"}
    assert "not measured" not in {probe.after for probe in probes[:1]}


def test_each_case_is_measured_on_what_served_before_it(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_unlearn.takedown.evidence import Moments

    workspace = _trained(make)
    one, other = _subjects(workspace, 0)[0], _subjects(workspace, 1)[0]
    serving = {s.shard: s.serving.name for s in workspace.opened.states() if s.serving}
    asked: list[set[str | None]] = []
    original = Moments._probe

    def watched(self: Moments, groups: Any) -> Any:
        asked.append({d.subject for _, documents in groups for d in documents})
        return original(self, groups)

    monkeypatch.setattr(Moments, "_probe", watched)
    workspace.desk.submit([_request(subject=one)])
    workspace.desk.approve("R-1")
    workspace.desk.submit([_request("R-2", subject=other)])
    workspace.desk.approve("R-2")
    cases = [
        case
        for _, case in Journal(workspace.opened.database, workspace.opened.keyring).open_cases()
    ]
    assert [case.served[shard] for shard, case in enumerate(cases)] == [serving[0], serving[1]]
    outcomes = workspace.desk.run(probe=True)
    probes = _receipt(workspace, outcomes[0]).probes
    assert probes != "not probed"
    assert "not measured" not in {probe.before for probe in probes[:1]}
    assert asked == [{one, other}] * 3


def test_other_shards_are_left_to_those_they_wait_for(make: Maker) -> None:
    """Possible copies and undecided requests in another shard: fenced, nothing trained anew."""
    workspace = _trained(make)
    gone, undecided = _subjects(workspace, 0)[0], _subjects(workspace, 1)[0]
    whole = answering_state(workspace)
    workspace.desk.submit([_request(subject=undecided)])
    settings = workspace.opened.config.takedown
    object.__setattr__(settings, "fence_flagged", True)
    try:
        plan = workspace.plan_takedown(_request("R-2", subject=gone))
        built: list[str] = []
        outcome = workspace.takedown(
            _request("R-2", subject=gone),
            probe=False,
            progress=lambda label, *_: built.append(label),
        )
    finally:
        object.__setattr__(settings, "fence_flagged", False)
    receipt = _receipt(workspace, outcome)
    assert [s.shard for s in plan.shards] == [0]
    assert len(built) == plan.shards[0].steps
    assert {s.shard for s in receipt.done.shards} == {0}
    assert {c.shard for c in receipt.done.checkpoints} == {0}
    assert receipt.closure.review.fenced
    left = answering_state(workspace)
    assert {n: b for n, b in whole.items() if n.startswith("shard-01")} == {
        n: b for n, b in left.items() if n.startswith("shard-01")
    }
    workspace.desk.keep([name for name, _, _ in workspace.desk.under_review()])
    workspace.desk.refuse("R-1", "the licence covers it")
    assert not workspace.opened.states()[1].missing  # it serves again, and nothing was trained


# --- kills


@pytest.mark.parametrize("way", ["withdraw", "discard"])
def test_killed_while_it_is_taken_back_nothing_is_half_taken_back(
    make: Maker, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    workspace = _full(make)
    opened = workspace.opened
    workspace.desk.submit([_request(subject="work-0")])
    workspace.desk.approve("R-1")
    marks = len(Tombstones(opened.database, opened.keyring))
    (row,) = Journal(opened.database, opened.keyring).filed()
    intake = workspace.desk._intake

    def take_back() -> None:
        with pytest.raises(KeyboardInterrupt):
            getattr(intake, way)(row)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end" if way == "withdraw" else "discard", _stopped)
        take_back()
    assert [r.state for r in workspace.desk.all()] == ["approved"]
    assert workspace.where("work-0/s0").state == "fenced"
    assert len(Tombstones(opened.database, opened.keyring)) == marks
    with monkeypatch.context() as patch:
        patch.setattr(opened.keyring, "destroy", _stopped)
        take_back()
    assert [r.state for r in workspace.desk.all()] == (["withdrawn"] if way == "withdraw" else [])
    assert workspace.where("work-0/s0").state == "live"
    assert not len(Tombstones(opened.database, opened.keyring))
    workspace.resume()
    assert len(opened.keyring.live_slots()) == len(STORED)
    assert not workspace.desk.run()


# --- settings


def test_other_chunks_keep_no_text_from_being_removed(make: Maker) -> None:
    path, config = _trained(make).path, Path("config.yaml")
    written = (path / config).read_text()
    assert "chunk_tokens" in written
    (path / config).write_text(re.sub(r"chunk_tokens: \d+", "chunk_tokens: 99", written))
    with Workspace.open(path) as workspace:
        with pytest.raises(RecipeMismatch):
            workspace.opened.store  # noqa: B018
        first = workspace.takedown(subject="work-0", probe=False)
        workspace.desk.submit([_request(subject="author-1", text=stored(1, "work-1").text)])
        workspace.desk.approve("R-1")
        _, second = workspace.desk.run()
        for outcome in (first, second):
            assert outcome is not None
            assert outcome.receipt is None
            assert outcome.waiting is not None
            assert "other chunk settings" in outcome.waiting
        assert workspace.resume()[0].state == "retrained"
        for name in ("work-0/s0", "work-1/s1", "author-1/1"):
            with pytest.raises(NotFound):
                workspace.where(name)
        with pytest.raises(RecipeMismatch):
            workspace.ingest([stored(20, "late")])
    (path / config).write_text(written)
    with Workspace.open(path) as workspace:
        receipts = [_receipt(workspace, outcome) for outcome in workspace.resume()]
        assert len(receipts) == 2
        assert all(
            any("digest of the store before" in line for line in r.does_not_prove) for r in receipts
        )


def test_an_embedder_that_is_not_there_keeps_no_text_from_being_removed(
    make: Maker, tiny_references: dict[str, str], tmp_path: Path
) -> None:
    path = _full(make).path
    config = tiny_config(tiny_references).model_copy(update={"embedder": str(tmp_path / "no")})
    with Workspace.open(path, models=Models(config)) as workspace:
        workspace.desk.submit([_request(text=stored(0, "work-0").text)])
        workspace.desk.approve("R-1")
        (outcome,) = workspace.desk.run()
        assert outcome.waiting
        with pytest.raises(NotFound):
            workspace.where("work-0/s0")
    with Workspace.open(path) as workspace:
        receipt = _receipt(workspace, workspace.resume()[0])
        assert any("paraphrases were not looked for" in line for line in receipt.does_not_prove)


def test_a_damaged_checkpoint_is_no_digest(make: Maker) -> None:
    workspace = _trained(make)
    name = next(s.serving.name for s in workspace.opened.states() if s.serving)
    path = workspace.opened.checkpoints.path(name)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    receipt = _receipt(workspace, workspace.takedown(subject="work-0", probe=False))
    shown = {adapter.shard: adapter.digest for adapter in receipt.state_after.adapters}
    assert shown[0] == "0" * 64
    assert any("adapter of shard 0" in line for line in receipt.does_not_prove)


# --- holds


def test_what_a_hold_keeps_back_is_refused_elsewhere_and_owed(make: Maker) -> None:
    workspace = _full(make)
    workspace.ingest([_near("mirror")])
    workspace.desk.register("recipient", "Halvard Press", subjects=["mirror"])
    for name in ("work-0/s0", "mirror"):
        workspace.opened.store.hold(id=name)
    outcome = workspace.takedown(_request(ids=("work-0/s0", "work-0/s3")), probe=False)
    assert outcome is not None
    assert len(outcome.owed) == 1
    again = stored(0, "work-0").model_copy(update={"id": "again", "subject": "again"})
    assert workspace.ingest([again]).counts() == {"refused": 1}


# --- the rest


def test_a_template_that_was_not_filled_in_is_named(tmp_path: Path) -> None:
    path = tmp_path / "request.yaml"
    path.write_text("id: R-1\nsubject: {{ name }}\n")
    with pytest.raises(InputError, match=r"line 2: .*template"):
        read_requests(path)


def test_a_number_that_is_also_an_id_is_refused(make: Maker) -> None:
    workspace = _full(make)
    workspace.desk.submit(
        [_request("2", subject="work-0"), _request("b", subject="work-1")], copies=False
    )
    with pytest.raises(InputError, match=r"'2' is the number of one takedown and the id of .* 1"):
        workspace.desk.refuse("2", "not theirs")
    assert {row.state for row in workspace.desk.all()} == {"received"}
    assert workspace.desk.refuse("b", "not theirs").number == 2
    assert workspace.desk.refuse("2", "not theirs", CLAIMANT.contact).number == 1
    workspace.desk.submit([_request("77", subject="work-2")], copies=False)
    assert workspace.desk.show("77")[0].number == 3


def test_a_correction_that_nears_an_undecided_request_is_fenced(make: Maker) -> None:
    workspace = _full(make)
    workspace.desk.submit([_request(ids=("work-0/s0",))])
    done = workspace.correct("work-1/s1", [_near("work-1/s1.2")], probe=False)
    assert done is not None
    assert "work-1/s1.2" not in _searched(workspace)
    workspace.desk.refuse("R-1", "not theirs")
    assert "work-1/s1.2" in _searched(workspace)


def test_what_came_back_is_demanded_under_another_id(make: Maker) -> None:
    workspace = _full(make)
    workspace.takedown(_request(subject="work-0"), probe=False)
    workspace.desk.restore("R-1", CLAIMANT.contact)
    workspace.ingest([stored(0, "work-0")])
    with pytest.raises(InputError, match=r"'R-1' was carried out and restored.*another id"):
        workspace.takedown(_request(subject="work-0"), probe=False)
    with pytest.raises(InputError, match="another id"):
        workspace.desk.submit([_request(subject="work-0")])
    assert workspace.takedown(_request("R-2", subject="work-0"), probe=False) is not None
    assert "work-0/s0" not in _searched(workspace)


def test_a_review_is_checked_whole_and_tells_what_waits(
    make: Maker, tiny_references: dict[str, str], tmp_path: Path
) -> None:
    workspace = _trained(make)
    settings = workspace.opened.config.takedown
    object.__setattr__(settings, "fence_flagged", True)
    try:
        workspace.takedown(subject="work-0", probe=False)
    finally:
        object.__setattr__(settings, "fence_flagged", False)
    waiting = [name for name, _, _ in workspace.desk.under_review()]
    out, keys = Output(), tmp_path / "ws-keys"
    with pytest.raises(InputError, match="'nobody' is not under review"):
        review(out, workspace.path, keep=[waiting[0]], remove=["nobody"], keys=keys)
    with pytest.raises(InputError, match="both"):
        review(out, workspace.path, keep=[waiting[0]], remove=[waiting[0]], keys=keys)
    assert [name for name, _, _ in workspace.desk.under_review()] == waiting
    config = workspace.path / "config.yaml"
    config.write_text(config.read_text().replace(tiny_references["llama"], str(tmp_path / "no")))
    learned_ = next(name for name in waiting if name.startswith("author"))
    kept = [name for name in waiting if name != learned_]
    with pytest.raises(RecipeMismatch, match="waits"):
        review(out, workspace.path, keep=kept, remove=[learned_], keys=keys)
