"""Requests for documents under a legal hold, before anybody decides."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from small import Maker, stored

from llm_unlearn import Workspace
from llm_unlearn.errors import NotFound
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


def _states(workspace: Workspace) -> list[str]:
    return [workspace.where(f"work-0/s{n}").state for n in (0, 2)]


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
