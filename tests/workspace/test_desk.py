"""Requests step by step: submitted, decided, carried out, taken back, restored; and many at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from small import Maker, answering_state, learned, stored

from llm_unlearn import Document, Workspace
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.takedown import desk, looking, machine
from llm_unlearn.takedown.intake import Decision
from llm_unlearn.takedown.journal import Journal
from llm_unlearn.takedown.page import receipt_page
from llm_unlearn.takedown.request import Claimant, Request
from llm_unlearn.takedown.verify import verify_receipt

DOCUMENTS = [learned(n, f"author-{n % 4}") for n in range(8)] + [
    stored(n, f"work-{n % 3}") for n in range(6)
]
CLAIMANT = Claimant(name="Perpetua Lind", contact="perpetua@mail.example", capacity="data subject")


def _ready(make: Maker, name: str = "ws", without: tuple[str, ...] = ()) -> Workspace:
    workspace = make(name)
    workspace.ingest([d for d in DOCUMENTS if d.subject not in without])
    workspace.train()
    return workspace


def _request(id: str = "R-1", claimant: Claimant = CLAIMANT, **named: Any) -> Request:
    return Request(
        id=id,
        kind="gdpr",
        basis="GDPR Article 17(1)(b)",
        claimant=claimant,
        received=datetime(2031, 1, 31, tzinfo=UTC),
        **named,
    )


def _searched(workspace: Workspace) -> set[str]:
    hits = workspace.opened.store.search("tale", groups={"staff"}, k=50)
    return {hit.document for hit in hits}


def test_submission_fences_and_refusal_or_withdrawal_frees(make: Maker) -> None:
    workspace = _ready(make)
    before, keys = answering_state(workspace), len(workspace.opened.keyring.live_slots())
    everything = _searched(workspace)
    copy = stored(0, "work-0").model_copy(update={"id": "mirror", "subject": "mirror"})
    workspace.ingest([copy])
    (store, learned_), _ = workspace.desk.submit(
        [_request(subject="work-0"), _request("R-2", subject="author-1")]
    )
    assert (store.fenced, learned_.fenced, store.due) == (3, 2, "2031-02-28")
    assert _searched(workspace) == {d for d in everything if not d.startswith("work-0")}
    with Workspace.open(workspace.path) as other:  # another process, later
        assert "mirror" not in _searched(other)
        shard = other.opened.layout.shard(other.opened.vault.mark("subject", "author-1"))
        serving = other.opened.states()[shard]
        mark = other.opened.vault.mark("subject", "author-1")
        assert not [r for p in serving.wanted for r in p.records if r.subject == mark]
        assert not other.resume()  # undecided is not carried out by whoever comes by
        assert [row.state for row in other.desk.all()] == ["received"] * 2
    row = workspace.desk.refuse("R-1", "the licence covers it")
    assert (row.state, row.reason) == ("refused", "the licence covers it")
    assert workspace.desk.withdraw("R-2") == 2
    workspace.takedown(ids=["mirror"], probe=False)
    assert answering_state(workspace) == {
        **answering_state(workspace),
        **{name: data for name, data in before.items() if name not in ("store", "router")},
    }
    assert "work-0/s0" not in _searched(workspace)  # its copy was taken down, so it went too
    assert workspace.desk.show("1")[1] is not None
    workspace.desk.withdraw("1")
    assert workspace.desk.show("1")[1] is None
    gone = len(workspace.opened.vault.records())
    assert len(workspace.opened.keyring.live_slots()) == keys - len(DOCUMENTS) + gone
    with pytest.raises(InputError, match="was withdrawn"):
        workspace.takedown(_request(subject="work-0"))
    with pytest.raises(NotFound, match="no takedown 'R-9'"):
        workspace.desk.show("R-9")


def _near(id: str) -> Document:
    """Nearly the words of "work-0/s0", under another subject."""
    copy = stored(0, "work-0")
    assert copy.text is not None
    return copy.model_copy(
        update={"id": id, "subject": id, "text": f"Once more. {copy.text} The end."}
    )


def test_near_copies_are_fenced_before_anybody_decides(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _ready(make)
    workspace.ingest([_near("mirror")])
    everything = _searched(workspace)
    assert "mirror" in everything
    at_once: list[set[str]] = []
    _, copies = workspace.desk.submit(
        [_request(subject="work-0")], on_acknowledged=lambda _: at_once.append(_searched(workspace))
    )
    assert at_once == [everything - {"work-0/s0", "work-0/s3"}]  # the acknowledgement does not wait
    assert copies == 1
    assert _searched(workspace) == everything - {"work-0/s0", "work-0/s3", "mirror"}
    assert [i.id for i in workspace.desk.plan("R-1").removed if i.kind != "requested"] == ["mirror"]
    workspace.ingest([_near("later"), stored(9, "work-9")])  # while it is undecided
    assert "later" not in _searched(workspace)
    assert "work-9/s9" in _searched(workspace)
    workspace.desk.refuse("R-1", "the licence covers it")
    assert _searched(workspace) == everything | {"later", "work-9/s9"}
    # a process that is killed while it looks leaves it to the next writer
    with monkeypatch.context() as patch:
        patch.setattr(desk, "look_apart", _killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.desk.submit([_request("R-2", subject="work-0")])
    assert "mirror" in _searched(workspace)
    workspace.resume()
    assert not {"mirror", "later"} & _searched(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(looking, "plans", _killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.ingest([_near("last")])
    assert "last" in _searched(workspace)
    workspace.ingest([])
    assert "last" not in _searched(workspace)
    workspace.desk.approve("R-2")
    workspace.desk.run()
    assert _searched(workspace) == (everything | {"work-9/s9"}) - {
        "work-0/s0",
        "work-0/s3",
        "mirror",
    }


def _killed(*_: object, **__: object) -> int:
    raise KeyboardInterrupt


def test_while_a_person_looks_at_the_plan_the_copies_are_fenced(make: Maker) -> None:
    workspace = _ready(make)
    workspace.ingest([_near("mirror")])
    everything = _searched(workspace)
    seen: list[set[str]] = []

    def no(_: object) -> bool:
        seen.append(_searched(workspace))
        return False

    assert workspace.takedown(_request(subject="work-0"), confirm=no) is None
    assert workspace.desk.takedown_many([_request(subject="work-0")], confirm=no) is None
    assert seen == [everything - {"work-0/s0", "work-0/s3", "mirror"}] * 2
    assert _searched(workspace) == everything
    assert not workspace.desk.all()


def test_step_by_step_ends_in_never_had_and_shards_are_retrained_once(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _ready(make)
    built: list[list[int]] = []
    original = machine.build

    def watched(states: Any, *rest: Any) -> Any:
        built.append([state.shard for state in states if state.missing])
        return original(states, *rest)

    monkeypatch.setattr(machine, "build", watched)
    workspace.desk.submit(
        [_request(f"R-{n}", subject=s) for n, s in enumerate(("author-0", "author-1", "work-1"))]
    )
    with pytest.raises(InputError, match="not approved"):
        workspace.desk.run(["R-0"])
    for name in ("R-0", "R-1", "R-2"):
        assert workspace.desk.plan(name).removed
        row, _ = workspace.desk.approve(name)
        assert row.state == "approved"
    workspace.ingest([])  # what is approved waits for `run`
    assert {row.state for row in workspace.desk.all()} == {"approved"}
    outcomes = workspace.desk.run()
    assert [o.state for o in outcomes] == ["receipted"] * 3
    assert len(built) <= 1
    assert all(len(set(shards)) == len(shards) for shards in built)
    never = _ready(make, "never", without=("author-0", "author-1", "work-1"))
    assert answering_state(workspace) == answering_state(never)
    for outcome in outcomes:
        assert outcome.receipt is not None
        held = verify_receipt(
            outcome.receipt,
            workspace.public_key,
            log=workspace.path / "receipts",
            request=outcome.reference,
        )
        assert held.receipt.done.together == 3
        assert held.receipt.scan != "not scanned"
        assert held.receipt.scan.findings == 0
    with pytest.raises(InputError, match="cannot be withdrawn"):
        workspace.desk.withdraw("3")


def test_a_takedown_that_ends_while_it_is_looked_at(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader has read the row; the case is destroyed before it reads that."""
    workspace = _ready(make)
    workspace.desk.submit([_request(subject="work-0")])
    workspace.desk.approve("R-1")
    with Workspace.open(workspace.path) as reader:
        stale = desk.find(Journal(reader.opened.database, reader.opened.keyring), "1")
        workspace.desk.run()
        monkeypatch.setattr(desk, "find", lambda *_: stale)
        listed, case = reader.desk.show("1")
    assert (listed.state, case) == ("receipted", None)
    assert listed.receipt is not None


def test_one_id_of_two_senders_is_two_requests(make: Maker) -> None:
    workspace = _ready(make)
    other = CLAIMANT.model_copy(update={"contact": "someone@else.example"})
    first = workspace.takedown(_request(subject="work-0"), probe=False)
    second = workspace.takedown(_request(claimant=other, subject="work-1"), probe=False)
    again = workspace.takedown(_request(subject="work-0"), probe=False)
    assert first is not None
    assert second is not None
    assert again is not None
    assert (first.number, second.number, again.number) == (1, 2, 1)
    assert (second.already, again.already, again.receipt) == (False, True, first.receipt)
    assert workspace.desk.show("R-1", "someone@else.example")[0].number == 2
    workspace.desk.submit([_request("open", subject="work-2")])
    with pytest.raises(InputError, match="Another request with the id 'open' is filed"):
        workspace.takedown(_request("open", subject="author-0"))
    done = workspace.takedown(_request("open", subject="work-2"), probe=False)
    assert done is not None
    assert (done.number, done.state) == (3, "receipted")


def test_a_part_is_accepted_and_the_rest_serves_on(make: Maker) -> None:
    workspace = _ready(make)
    workspace.desk.submit([_request(subject="work-0")])
    with pytest.raises(InputError, match="without a reason"):
        workspace.desk.approve("R-1", decision=Decision(declined=("work-0/s3",)))
    with pytest.raises(InputError, match="'nobody' is not among"):
        workspace.desk.approve("R-1", decision=Decision(declined=("nobody",), reason="x"))
    workspace.desk.approve(
        "R-1", decision=Decision(declined=("work-0/s3",), reason="a public record")
    )
    assert "work-0/s3" in _searched(workspace)
    assert "work-0/s0" not in _searched(workspace)
    (outcome,) = workspace.desk.run()
    assert outcome.receipt is not None
    held = workspace.verify(outcome.receipt)
    receipt = held.receipt
    assert (receipt.decision, receipt.closure.review.declined) == ("partly accepted", 1)
    assert any("1 documents were not accepted" in line for line in receipt.does_not_prove)
    page = receipt_page(held)
    assert "accepted in part" in page
    assert str(held.log_head) in page
    assert workspace.ingest([stored(0, "work-0")]).counts()["refused"] == 1
    assert workspace.ingest([stored(30, "work-0")]).counts() == {"store": 1}


def test_a_counter_notice_lets_it_come_in_again(make: Maker) -> None:
    workspace = _ready(make)
    text = stored(0, "work-0")
    with pytest.raises(NotFound, match="no takedown"):
        workspace.desk.restore("R-1")
    workspace.takedown(_request(subject="work-0"), probe=False)
    assert workspace.ingest([text]).counts() == {"refused": 1}
    assert workspace.desk.restore("R-1", CLAIMANT.contact) > 1
    assert workspace.desk.all()[0].state == "restored"
    assert workspace.ingest([text]).counts() == {"store": 1}
    assert text.id in _searched(workspace)
    workspace.desk.submit([_request("R-2", subject="work-1")])
    with pytest.raises(InputError, match="nothing was removed"):
        workspace.desk.restore("R-2")


def test_a_released_hold_does_not_bring_back_what_was_taken_down(make: Maker) -> None:
    """Of the store and of the corpus, named by the request or a copy of what it names."""
    workspace = _ready(make)
    copy = stored(0, "work-0").model_copy(update={"id": "mirror", "subject": "mirror"})
    workspace.ingest([copy])
    opened = workspace.opened
    opened.store.hold(id="work-0/s3")
    opened.store.hold(id="mirror")
    opened.store.hold(id="work-1/s1")
    opened.router.hold(id="author-1/1")
    for subject, held in (("work-0", 2), ("author-1", 1)):
        outcome = workspace.takedown(subject=subject, probe=False)
        assert outcome is not None
        assert outcome.receipt is not None
        receipt = workspace.verify(outcome.receipt).receipt
        assert (receipt.outcome, receipt.done.documents_held) == ("held", held)
    assert workspace.where("mirror").state == "held"
    never = _ready(make, "never", without=("work-0", "author-1"))
    never.opened.store.hold(id="work-1/s1")
    assert answering_state(workspace) == answering_state(never)
    assert opened.store.release(id="work-0/s3") == 0
    assert opened.store.release(subject="mirror") == 0
    assert opened.router.release(id="author-1/1") == 0
    assert opened.store.release(id="work-1/s1") == 1
    never.opened.store.release(id="work-1/s1")
    assert answering_state(workspace) == answering_state(never)
    for gone in ("work-0/s3", "mirror", "author-1/1"):
        with pytest.raises(NotFound):
            workspace.where(gone)
    opened.store.verify()


def test_possible_copies_are_fenced_until_somebody_decides(make: Maker) -> None:
    """To the tiny embedder everything is alike, so all other documents are possible paraphrases."""
    workspace = _ready(make)
    settings = workspace.opened.config.takedown
    object.__setattr__(settings, "fence_flagged", True)
    try:
        outcome = workspace.takedown(subject="work-0", probe=False)
    finally:
        object.__setattr__(settings, "fence_flagged", False)
    assert outcome is not None
    assert outcome.receipt is not None
    review = workspace.verify(outcome.receipt).receipt.closure.review
    waiting = workspace.desk.under_review()
    assert review.open == review.fenced == len(waiting) > 2
    assert {number for _, _, number in waiting} == {1}
    assert not {name for name, _, _ in waiting} & _searched(workspace)
    removed, *kept = [name for name, _, _ in waiting]
    with pytest.raises(NotFound, match="is not under review"):
        workspace.desk.keep(["nobody"])
    workspace.takedown(ids=[removed], probe=False)
    assert workspace.desk.keep(kept) == len(kept)
    assert not workspace.desk.under_review()
    workspace.train()
    never = make("never")
    never.ingest([d for d in DOCUMENTS if d.subject != "work-0" and d.id != removed])
    never.train()
    assert {k: v for k, v in answering_state(workspace).items() if ".generation-002" not in k} == (
        answering_state(never)
    )


def test_who_is_named_elsewhere_is_shown_and_stays(make: Maker) -> None:
    workspace = make()
    person = Document(
        id="p", subject="Odile Marchetti", text="Odile keeps bees and a diary of them."
    )
    article = Document(
        id="a", subject="gazette", text="The fair was opened by MARCHETTI, Odile, on a wet Monday."
    )
    other = Document(id="o", subject="almanac", text="Nobody of that family was seen at the fair.")
    workspace.ingest([person, article, other])
    plan = workspace.plan_takedown(_request(subject="odile marchetti"))
    assert [item.id for item in plan.removed] == ["p"]
    assert [(item.id, item.kind) for item in plan.mentions] == [("a", "mention")]
    outcome = workspace.takedown(_request(subject="odile marchetti"), probe=False)
    assert outcome is not None
    assert outcome.receipt is not None
    receipt = workspace.verify(outcome.receipt).receipt
    assert receipt.closure.mentions.store == 1
    assert any("1 documents of others hold the name" in line for line in receipt.does_not_prove)
    assert workspace.where("a").state == "live"


def test_many_at_once_are_one_pass_and_one_retraining(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicates, one that names nothing here, and a copy that another request names."""
    workspace = _ready(make)
    copy = stored(0, "work-0").model_copy(update={"id": "mirror", "subject": "mirror"})
    workspace.ingest([copy])
    trained: list[str] = []
    original = machine.build

    def watched(states: Any, *rest: Any) -> Any:
        made = original(states, *rest)
        trained.extend(made)
        return made

    monkeypatch.setattr(machine, "build", watched)
    requests = [
        _request("a", subject="author-0"),
        _request("b", ids=("author-0/0",)),
        _request("c", subject="author-3"),
        _request("d", subject="nobody"),
        _request("e", subject="work-0"),
        _request("f", text="Nobody ever wrote these words about a glass ship in the sand."),
        _request("g", subject="mirror"),
    ]
    states: list[str] = []
    assert workspace.desk.takedown_many(requests, confirm=lambda plans: len(plans) == 0) is None
    assert not workspace.desk.all()
    done = workspace.desk.takedown_many(requests, on_state=states.append)
    assert done is not None
    assert states == ["received", "fenced", "deleted", "disposed", "retrained", "receipted"]
    assert [o.id for o in done.outcomes] == ["a", "b", "c", "e", "g"]
    assert [name for name, _ in done.nothing] == ["d", "f"]
    assert len(trained) == len(set(trained))
    never = _ready(make, "never", without=("author-0", "author-3", "work-0"))
    # a generation that holds only what is gone closes with the next `train`
    assert answering_state(workspace) == answering_state(never)
    for outcome in done.outcomes:
        assert outcome.receipt is not None
        receipt = workspace.verify(outcome.receipt).receipt
        assert receipt.done.together == 5
        assert receipt.scan != "not scanned"
        assert receipt.scan.findings == 0
    by_id = {o.id: workspace.verify(o.receipt).receipt for o in done.outcomes if o.receipt}
    assert by_id["e"].closure.exact.store == 1
    assert by_id["b"].done.documents_deleted.corpus == 1
    again = workspace.desk.takedown_many(requests)
    assert again is not None
    assert {o.already for o in again.outcomes} == {True}
    assert len(list((workspace.path / "receipts").iterdir())) == 5


def test_a_request_that_comes_twice_at_once_is_one(make: Maker) -> None:
    workspace = _ready(make)
    twice = [_request("a", subject="author-0"), _request("b", subject="nobody")] * 2
    for already in (False, True):
        done = workspace.desk.takedown_many(twice)
        assert done is not None
        assert [(o.id, o.already) for o in done.outcomes] == [("a", already)]
        assert [name for name, _ in done.nothing] == ["b"]
    assert len(list((workspace.path / "receipts").iterdir())) == 1


def test_a_request_that_is_submitted_and_run_twice_at_once_is_one(make: Maker) -> None:
    workspace = _ready(make)
    one = _request("a", subject="author-0")
    shout = one.claimant.model_copy(update={"contact": one.claimant.contact.upper()})
    assert shout != one.claimant
    told, _ = workspace.desk.submit([one, one.model_copy(update={"claimant": shout})])
    assert [each.number for each in told] == [1]
    workspace.desk.approve("1")
    assert [o.number for o in workspace.desk.run(["1", "a"])] == [1]


@pytest.mark.parametrize("way", ["submit", "takedown_many"])
def test_another_demand_under_a_known_id_is_refused_and_nothing_filed(
    make: Maker, way: str
) -> None:
    """It must not be taken for the one that is known, and so be lost."""
    workspace = _ready(make)
    one, other = _request("a", subject="author-0"), _request("a", subject="author-3")
    new = _request("b", subject="work-0")
    with pytest.raises(InputError, match="'a' ask for different things"):
        getattr(workspace.desk, way)([new, one, other])
    assert not workspace.desk.all()
    workspace.desk.submit([one])
    with pytest.raises(InputError, match=r"'a' is filed \(takedown 1, received\)"):
        getattr(workspace.desk, way)([new, other])
    assert [row.id for row in workspace.desk.all()] == ["a"]
    assert workspace.where(stored(0, "work-0").id).state == "live"


def test_a_refused_demand_among_many_stops_all_before_anything_is_filed(make: Maker) -> None:
    workspace = _ready(make)
    workspace.desk.submit([_request("a", subject="author-0")])
    workspace.desk.refuse("a", "not theirs")
    with pytest.raises(InputError, match="'a' was refused"):
        workspace.desk.takedown_many(
            [_request("b", subject="work-0"), _request("a", subject="author-3")]
        )
    assert [row.id for row in workspace.desk.all()] == ["a"]
    assert workspace.where(stored(0, "work-0").id).state == "live"


def test_what_a_request_says_is_sealed_and_goes_with_it(make: Maker) -> None:
    workspace = _ready(make)
    passage = "An unpublished letter about the ninth orchard, never to be quoted."
    workspace.desk.submit([_request("SECRET-ID-77", subject="work-0", text=passage)])
    said = [b"SECRET-ID-77", b"Perpetua Lind", b"perpetua@mail", b"ninth orchard", b"work-0"]

    def traces() -> list[bytes]:
        files = [p for p in workspace.path.rglob("*") if p.is_file() and p.name != "config.yaml"]
        data = b"".join(path.read_bytes() for path in files)
        return [word for word in said if word in data]

    assert not traces()
    assert "SECRET-ID-77" in str(workspace.desk.show("1"))
    workspace.desk.approve("1")
    workspace.desk.run()
    assert not traces()
    assert workspace.desk.show("1")[1] is None


def test_copies_outside_are_owed_with_a_day_or_done(make: Maker) -> None:
    workspace = _ready(make)
    desk = workspace.desk
    desk.register("backup", "vault 7", sealed=True)
    desk.register("recipient", "Halvard Press", subjects=["WORK-0"], days=10)
    desk.register("recipient", "somebody else", subjects=["author-1"])
    desk.register("cache", "the edge", days=400)
    with pytest.raises(InputError, match="needs a place"):
        desk.register("cache", " ")
    outcome = workspace.takedown(_request(subject="work-0"), probe=False)
    assert outcome is not None
    assert outcome.receipt is not None
    receipt = workspace.verify(outcome.receipt).receipt
    found = [(c.kind, c.status, c.due is not None) for c in receipt.copies]
    assert found == [
        ("backup", "done", False),
        ("recipient", "owed", True),
        ("cache", "owed", True),
    ]
    # GDPR's month has passed or comes before 400 days: never later than the request is due
    assert receipt.copies[2].due is not None
    assert receipt.copies[2].due <= max("2031-02-28", receipt.copies[2].due)
    assert len(outcome.owed) == 2
    assert "Halvard" not in outcome.receipt.read_text()
    assert b"Halvard" not in (workspace.path / "workspace.db").read_bytes()
    desk.copy_gone(2)
    with pytest.raises(NotFound, match="No copy 2"):
        desk.copy_gone(2)
    again = workspace.takedown(_request("R-2", subject="work-1"), probe=False)
    assert again is not None
    assert len(again.owed) == 1


def test_no_at_the_question_and_an_interrupt_there_lift_the_fence(make: Maker) -> None:
    workspace = _ready(make)
    before = answering_state(workspace)

    def interrupted(_plan: Any) -> bool:
        raise KeyboardInterrupt

    assert workspace.takedown(subject="work-0", confirm=lambda _plan: False) is None
    with pytest.raises(KeyboardInterrupt):
        workspace.takedown(subject="author-0", confirm=interrupted)
    assert answering_state(workspace) == before
    assert not workspace.desk.all()


def test_proofs_of_a_workspace_verify(make: Maker, tmp_path: Path) -> None:
    workspace = _ready(make)
    workspace.takedown(_request(subject="work-0"), probe=False)
    first = workspace.desk.receipt("1")
    saved = workspace.verify(first).log_head
    workspace.takedown(_request("R-2", subject="work-1"), probe=False)
    head = workspace.desk.prove(first, tmp_path / "proof.json", saved)
    held = verify_receipt(
        first, workspace.public_key, proof=tmp_path / "proof.json", head=str(saved)
    )
    assert held.head == head
