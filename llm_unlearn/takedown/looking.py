"""Copies of what undecided requests name: found and fenced before anybody decides.

Guarantees: after `look`, and after documents came in under `watching`, nothing that a plan of a waiting
request would remove answers, nor what it would leave to people (unless `takedown.fence_flagged` is off).
A process that is killed in between leaves it to whoever writes next. Nothing is destroyed; refusing or
withdrawing a request frees its copies.

Between the acknowledgement and the end of `look` such copies still answer: it reads every document.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from llm_unlearn.errors import NotFound, UnlearnError
from llm_unlearn.opened import Opened
from llm_unlearn.takedown.intake import Decision, Intake
from llm_unlearn.takedown.journal import Filed
from llm_unlearn.takedown.plan import Plan, make_plans


def plans(
    opened: Opened,
    rows: Sequence[Filed],
    *,
    include_flagged: bool | None = None,
    among: Collection[bytes] | None = None,
) -> list[Plan | NotFound]:
    """The plans of submitted requests, made in one pass.

    Args:
        include_flagged: by default as each was submitted.
        among: copies are looked for among these documents only, by handle.
    """
    intake = Intake(opened)
    cases = [intake.journal.case(row) for row in rows]
    requests = [case.request for case in cases]
    if any(request is None for request in requests):
        raise AssertionError("a submitted case has its request")
    return make_plans(
        opened,
        [r for r in requests if r is not None],
        include_flagged=[
            case.include_flagged if include_flagged is None else include_flagged for case in cases
        ],
        among=among,
    )


def look(opened: Opened, but: int | None = None) -> int:
    """Plan what was received: what is approved ahead starts, and of what waits for a decision the copies
    are fenced, unless that was done; how many documents these took out of use.

    Args:
        but: the number of one that is planned by its caller.
    """
    intake, rows = Intake(opened), []
    for row in intake.journal.filed():
        if row.state == "received" and row.number != but:
            case = intake.journal.case(row)
            if case.ahead or not case.looked:
                rows.append(row)
    try:
        found = plans(opened, rows) if rows else []
    except UnlearnError:
        return 0  # fenced all the same; it must not keep others, or its own cure, from being done
    fenced = 0
    for row, plan in zip(rows, found, strict=True):
        case = intake.journal.case(row)
        if not case.ahead:
            fenced += intake.fence_copies(row, None if isinstance(plan, NotFound) else plan)
        elif isinstance(plan, NotFound):
            intake.discard(row)
        else:
            with suppress(UnlearnError):  # as above
                intake.approve(row, plan, Decision(after=case.after), start=True)
    return fenced


def look_apart(opened: Opened, writing: Callable[[], AbstractContextManager[None]]) -> int:
    """`look` for undecided requests, comparing documents while others may write; how many it fenced.

    If documents changed meanwhile, it is done again, the second time with the lock held.

    Args:
        writing: takes the writer's lock for as long as its context lasts.
    """
    seen = opened.vault.version()
    rows = _unseen(opened)
    if not rows:
        return 0
    try:
        found = plans(opened, rows)
    except UnlearnError:  # what a killed writer left is cleared away by whoever locks
        found = []
    with writing():
        if not found or opened.vault.version() != seen:
            opened.tidy()
            return look(opened)
        still = {row.number for row in _unseen(opened)}
        pairs = [(r, p) for r, p in zip(rows, found, strict=True) if r.number in still]
        return _fence(Intake(opened), pairs)


def _unseen(opened: Opened) -> list[Filed]:
    """Undecided requests of which nobody has looked for copies."""
    intake, rows = Intake(opened), []
    for row in intake.journal.filed():
        case = intake.journal.case_or_none(row) if row.state == "received" else None
        if case is not None and not case.ahead and not case.looked:
            rows.append(row)
    return rows


def _fence(intake: Intake, pairs: Sequence[tuple[Filed, Plan | NotFound]]) -> int:
    return sum(
        intake.fence_copies(row, None if isinstance(plan, NotFound) else plan)
        for row, plan in pairs
    )


@contextmanager
def watching(opened: Opened, fresh: Collection[bytes]) -> Iterator[None]:
    """While documents come in: what of them undecided requests reach is fenced at the end.

    If that is not reached, whoever writes next compares every document again.

    Args:
        fresh: handles of what came in, complete at the end.
    """
    intake = Intake(opened)
    rows = [
        row
        for row in intake.journal.filed()
        if row.state == "received" and intake.journal.case(row).looked
    ]
    if rows:
        with opened.database.transaction():
            for row in rows:
                intake.unlook(row)
    yield
    try:
        found = plans(opened, rows, among=fresh) if rows else []
    except UnlearnError:
        return  # what came in stays in, whatever keeps others from being read
    _fence(intake, list(zip(rows, found, strict=True)))
