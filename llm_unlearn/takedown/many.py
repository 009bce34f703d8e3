"""Many requests at once: fenced together, compared in one pass, every shard retrained once.

Guarantees: all are filed in one transaction, so that a killed process leaves all of them or none; a request
under which nothing falls holds no other up; what was done before is not done again; what was filed
before is not taken back by a no.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from llm_unlearn.errors import NotFound
from llm_unlearn.opened import Opened
from llm_unlearn.takedown.intake import Decision, Intake
from llm_unlearn.takedown.journal import After, Filed, Journal
from llm_unlearn.takedown.looking import plans
from llm_unlearn.takedown.machine import Outcome, Takedowns, check_open
from llm_unlearn.takedown.plan import Plan, ShardWork, joint_work
from llm_unlearn.takedown.request import Request, once


@dataclass(frozen=True)
class Many:
    """What became of a file of requests.

    Attributes:
        outcomes: of those that were carried out, or had been before.
        nothing: id and reason of those under which nothing falls, or which name what is not here.
        shards: what was retrained, each shard once.
    """

    outcomes: tuple[Outcome, ...]
    nothing: tuple[tuple[str, str], ...]
    shards: tuple[ShardWork, ...]
    seconds: float | None


def take_down(
    opened: Opened,
    takedowns: Takedowns,
    requests: Sequence[Request],
    *,
    include_flagged: bool,
    probe: bool,
    after: After,
    on_state: Callable[[str], None] | None,
    confirm: Callable[[Sequence[Plan]], bool] | None,
) -> Many | None:
    """Carry out many requests; for whoever holds the writer's lock. Arguments as `Desk.takedown_many`."""
    requests = once(requests)
    intake = Intake(opened)
    journal = intake.journal
    nothing: list[tuple[str, str]] = []
    filed: dict[int, Filed] = {}
    new: set[int] = set()  # filed by this call; what came before it is not this call's to take back
    ids: dict[int, str] = {}
    with opened.database.transaction():
        for request in requests:
            row = journal.find(request.id, request.claimant.contact)
            if row is not None:
                check_open(row, request)
                journal.check_same(row, request)
                if row.state != "received":
                    continue
            try:
                if row is None:
                    submitted = intake.submit(
                        [request],
                        ahead=confirm is None,
                        include_flagged=include_flagged,
                        after=after,
                    )
                    row = submitted[0][0]
                    new.add(row.number)
            except NotFound as error:
                nothing.append((request.id, error.problem))
                continue
            filed[row.number], ids[row.number] = row, request.id
    if on_state is not None and filed:
        on_state("received")
    pairs: list[tuple[Filed, Plan]] = []
    try:
        done = _done_before(journal, takedowns, requests, filed)
        drafted = plans(opened, list(filed.values()), include_flagged=include_flagged)
        for row, plan in zip(filed.values(), drafted, strict=True):
            if not isinstance(plan, NotFound):
                pairs.append((row, plan))
                continue
            if row.number in new:
                new.remove(row.number)
                intake.discard(row)
            nothing.append((ids[row.number], plan.problem))
        drafts = [plan for _, plan in pairs]
        if confirm is not None:
            with opened.database.transaction():
                for row, plan in pairs:
                    intake.fence_copies(row, plan)
        agreed = confirm is None or confirm(drafts)
    except BaseException:
        if confirm is not None:  # approved ahead, they are finished by whoever writes next
            _take_back(intake, filed, new)
        raise
    if not agreed:
        _take_back(intake, filed, new)
        return None
    shards, seconds = joint_work(opened, drafts)
    if pairs:
        decisions = [Decision(after=after)] * len(pairs)
        done += takedowns.approve_and_run(pairs, decisions, probe=probe)
    takedowns.resume()
    done.sort(key=lambda outcome: outcome.number)
    return Many(tuple(done), tuple(nothing), shards, seconds)


def _take_back(intake: Intake, filed: Mapping[int, Filed], new: Collection[int]) -> None:
    for number in sorted(new):
        intake.discard(filed[number])


def _done_before(
    journal: Journal,
    takedowns: Takedowns,
    requests: Sequence[Request],
    filed: Collection[int],
) -> list[Outcome]:
    done = []
    for request in requests:
        row = journal.find(request.id, request.claimant.contact)
        if row is not None and row.number not in filed:
            outcome = takedowns.known(request)
            if outcome is not None:
                done.append(outcome)
    return done
