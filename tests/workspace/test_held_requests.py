"""Requests for documents under a legal hold, before anybody decides."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from small import Maker, stored

from llm_unlearn import Workspace
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.takedown import intake, reviews
from llm_unlearn.takedown.request import Claimant, Request

CLAIMANT = Claimant(name="Perpetua Lind", contact="perpetua@mail.example", capacity="data subject")


def _request(id: str, **named: Any) -> Request:
    received = datetime(2031, 1, 31, tzinfo=UTC)
    basis = "GDPR Article 17(1)(b)"
    return Request(id=id, kind="gdpr", basis=basis, claimant=CLAIMANT, received=received, **named)


def _made(make: Maker) -> Workspace:
    workspace = make("ws")
    workspace.ingest([stored(n, f"work-{n % 2}") for n in range(4)])
    return workspace


def _state(workspace: Workspace, document: str) -> str:
    return workspace.where(document).state


def _states(workspace: Workspace) -> list[str]:
    return [_state(workspace, f"work-0/s{n}") for n in (0, 2)]


def test_a_hold_ends_as_open_requests_say(make: Maker) -> None:
    workspace = _made(make)
    store = workspace.opened.store
    workspace.desk.submit([_request("R-1", subject="work-0")])
    store.hold(subject="work-0")  # while fenced
    assert store.release(id="work-0/s0") == 0
    assert _states(workspace) == ["fenced", "held"]
    workspace.desk.withdraw("R-1")
    assert _states(workspace) == ["live", "held"]
    assert store.release(subject="work-0") == 1
    assert _states(workspace) == ["live", "live"]
    store.hold(subject="work-0")  # before the request
    workspace.desk.submit([_request("R-2", subject="work-0")])
    assert store.release(id="work-0/s0") == 0
    assert _states(workspace) == ["fenced", "held"]
    workspace.desk.withdraw("R-2")
    assert _states(workspace) == ["live", "held"]
    assert store.release(subject="work-0") == 1
    store.hold(subject="work-0")
    workspace.desk.submit([_request("R-4", subject="work-0")])
    workspace.desk.submit([_request("R-5", subject="work-0")])
    workspace.desk.withdraw("R-4")
    assert store.release(subject="work-0") == 0
    assert _states(workspace) == ["fenced", "fenced"]
    workspace.desk.refuse("R-5", "no")
    assert _states(workspace) == ["live", "live"]


def test_what_was_released_under_an_open_request_goes_with_it(make: Maker) -> None:
    workspace = _made(make)
    store = workspace.opened.store
    store.hold(subject="work-0")
    workspace.desk.submit([_request("R-1", subject="work-0")])
    store.release(id="work-0/s0")
    workspace.desk.approve("R-1")
    workspace.desk.run(probe=False)
    with pytest.raises(NotFound):
        workspace.where("work-0/s0")
    assert store.release(subject="work-0") == 0
    with pytest.raises(NotFound):
        workspace.where("work-0/s2")


def test_a_hold_that_comes_after_the_fence_keeps_its_document(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right before the keys go; then a hold; then whoever writes next carries it out."""
    workspace = _made(make)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(workspace.opened.vault, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.takedown(_request("R-1", subject="work-0"), probe=False)
    assert workspace.opened.store.hold(id="work-0/s0") == 1
    (outcome,) = workspace.resume()
    assert _state(workspace, "work-0/s0") == "held"
    assert outcome.receipt is not None
    done = workspace.verify(outcome.receipt).receipt.done
    assert (done.documents_held, done.documents_deleted.store) == (1, 1)
    assert workspace.opened.store.release(id="work-0/s0") == 0  # barred: destroyed now
    with pytest.raises(NotFound):
        workspace.where("work-0/s0")


def test_a_hold_that_comes_while_it_is_approved_is_not_overwritten(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _made(make)
    workspace.desk.submit([_request("R-1", subject="work-0")])
    gather = intake.Earlier.gather

    def slowly(*given: Any) -> Any:
        workspace.opened.store.hold(id="work-0/s0")
        return gather(*given)

    monkeypatch.setattr(intake.Earlier, "gather", slowly)
    with pytest.raises(InputError, match="came under a legal hold in this moment"):
        workspace.desk.approve("R-1")
    assert _states(workspace) == ["held", "fenced"]
    monkeypatch.undo()
    workspace.desk.approve("R-1")
    workspace.desk.run()
    assert _state(workspace, "work-0/s0") == "held"


def test_what_was_destroyed_when_its_hold_ended_is_told(make: Maker) -> None:
    workspace = _made(make)
    workspace.opened.store.hold(subject="work-0")
    workspace.desk.submit([_request("R-1", subject="work-0")])
    workspace.desk.approve("R-1")
    workspace.opened.store.release(subject="work-0")
    (outcome,) = workspace.desk.run()
    assert outcome.receipt is not None
    limits = workspace.verify(outcome.receipt).receipt.does_not_prove
    assert any("2 documents that a legal hold had kept were destroyed" in line for line in limits)


def test_withdrawing_one_request_leaves_the_review_of_another(make: Maker) -> None:
    workspace = _made(make)
    opened = workspace.opened
    handle = opened.vault.mark("id", "work-1/s1")
    opened.vault.set_state([handle], "fenced")
    reviews.add(opened.database, [handle], b"of another one!!")
    workspace.desk.submit([_request("R-2", ids=("work-1/s1",))])
    workspace.desk.approve("R-2")
    workspace.desk.withdraw("R-2")
    assert _state(workspace, "work-1/s1") == "fenced"
    assert [name for name, _, _ in workspace.desk.under_review()] == ["work-1/s1"]


def test_a_possible_paraphrase_under_a_hold_is_looked_at_when_it_ends(make: Maker) -> None:
    workspace = _made(make)
    opened = workspace.opened
    store = opened.store
    object.__setattr__(opened.config.takedown, "fence_flagged", True)
    try:
        flagged = [
            item.id for item in workspace.plan_takedown(_request("R-1", ids=("work-0/s0",))).flagged
        ]
        assert flagged
        name = flagged[0]
        store.hold(id=name)
        workspace.desk.submit([_request("R-1", ids=("work-0/s0",))])
        store.release(id=name)
        assert _state(workspace, name) == "fenced"  # nobody has decided yet
        store.hold(id=name)
        workspace.desk.approve("R-1")
        assert name in [found for found, _, _ in workspace.desk.under_review()]
        store.release(id=name)
        assert _state(workspace, name) == "fenced"
        workspace.desk.keep([name])
        assert _state(workspace, name) == "live"
    finally:
        object.__setattr__(opened.config.takedown, "fence_flagged", False)
