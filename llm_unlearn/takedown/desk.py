"""The takedown desk: every move that a person or a script makes with requests, under the writer's lock.

Guarantees: each method takes the lock, and leaves the workspace whole if it is killed; requests are known
by number, or by id and sender. Methods that only look take no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.opened import Opened
from llm_unlearn.takedown import many
from llm_unlearn.takedown.copies import DAYS, Copies, Entry, Kind
from llm_unlearn.takedown.intake import ACCEPTED, Acknowledged, Decision, Intake
from llm_unlearn.takedown.journal import After, Case, Filed
from llm_unlearn.takedown.looking import look_apart, plans
from llm_unlearn.takedown.machine import Outcome, Takedowns, check_open
from llm_unlearn.takedown.plan import Plan
from llm_unlearn.takedown.request import Request, once
from llm_unlearn.takedown.which import find

if TYPE_CHECKING:
    from llm_unlearn.sisa.build import Progress
    from llm_unlearn.takedown.proof import LogHead

Writing = Callable[..., AbstractContextManager[None]]


@dataclass(frozen=True)
class Listed:
    """One takedown as it is listed; what its case knew is None once the case is destroyed."""

    number: int
    state: str
    receipt: str | None
    id: str | None = None
    sender: str | None = None
    kind: str | None = None
    received: str | None = None
    due: str | None = None
    documents: int | None = None
    reason: str | None = None


class Desk:
    """The takedown desk of one workspace.

    Args:
        writing: takes the writer's lock for as long as its context lasts.
    """

    def __init__(self, opened: Opened, writing: Writing) -> None:
        self._opened = opened
        self._writing = writing
        self._intake = Intake(opened)

    def all(self) -> list[Listed]:
        """Every takedown, in the order of submission."""
        return [self._listed(row) for row in self._intake.journal.filed()]

    def show(self, which: str, sender: str | None = None) -> tuple[Listed, Case | None]:
        """One takedown, with all that is still known of it.

        Raises:
            NotFound, InputError: see `which.find`.
        """
        row = find(self._intake.journal, which, sender)
        return self._listed(row), self._intake.journal.case_or_none(row)

    def _listed(self, row: Filed) -> Listed:
        case = self._intake.journal.case_or_none(row)
        if case is None:  # another process may have ended it just now
            rows = self._intake.journal.filed() if row.slot is not None else []
            row = next((now for now in rows if now.number == row.number), row)
            return Listed(row.number, row.state, row.receipt)
        due = case.request.deadline if case.request else None
        return Listed(
            row.number,
            row.state,
            row.receipt,
            case.request_id,
            case.sender,
            case.kind,
            case.received,
            due.isoformat() if due else None,
            len(case.handles),
            case.reason,
        )

    def submit(
        self,
        requests: Iterable[Request],
        *,
        on_acknowledged: Callable[[Acknowledged], None] | None = None,
        copies: bool = True,
    ) -> tuple[list[Acknowledged], int]:
        """File requests and fence what they name; then look for copies, and fence these.

        A request that this sender submitted before is passed over.

        Args:
            on_acknowledged: told of each request once its fence holds, before copies are looked for.
            copies: False leaves the looking to `look`, or to whoever writes next.

        Returns:
            The acknowledgements, and how many more documents were fenced as copies.

        Raises:
            NotFound: one names what no document has; nothing was filed.
            InputError: one has the id of another whose case is there and asks for something else, or
                of one that was restored; nothing was filed.
        """
        with self._writing(resuming=False, quick=True):
            journal, fresh = self._intake.journal, []
            for request in once(requests):
                row = journal.find(request.id, request.claimant.contact)
                if row is None:
                    fresh.append(request)
                else:
                    if row.state == "restored":
                        check_open(row, request)
                    journal.check_same(row, request)
            told = [each for _, each in self._intake.submit(fresh)]
        if on_acknowledged is not None:
            for each in told:
                on_acknowledged(each)
        return told, self.look() if copies else 0

    def look(self) -> int:
        """Find and fence copies of what undecided requests name; how many more documents are fenced.

        Others may write meanwhile: the lock is held only to fence.
        """
        return look_apart(self._opened, partial(self._writing, resuming=False, quick=True))

    def plan(self, which: str, sender: str | None = None, *, include_flagged: bool = False) -> Plan:
        """What carrying out a submitted request would do; changes nothing.

        Raises:
            NotFound: there is no such request, or nothing falls under it.
            InputError: it is past planning.
        """
        row = find(self._intake.journal, which, sender)
        return self._plan(row, include_flagged)

    def _plan(self, row: Filed, include_flagged: bool) -> Plan:
        if row.state not in ("received", "approved"):
            raise InputError(f"Takedown {row.number} is {row.state}: there is nothing to plan.")
        plan = plans(self._opened, [row], include_flagged=include_flagged)[0]
        if isinstance(plan, NotFound):
            raise plan
        return plan

    def approve(
        self,
        which: str,
        sender: str | None = None,
        *,
        decision: Decision = ACCEPTED,
        include_flagged: bool = False,
    ) -> tuple[Listed, Plan]:
        """Accept a request, in whole or in part; `run` carries it out.

        Raises:
            InputError: it is not waiting for a decision, or the decision does not fit its plan.
        """
        with self._writing(resuming=False):
            row = find(self._intake.journal, which, sender)
            if row.state != "received":
                raise InputError(f"Takedown {row.number} is {row.state} and was decided.")
            plan = self._plan(row, include_flagged)
            return self._listed(self._intake.approve(row, plan, decision, start=False)), plan

    def run(
        self,
        which: Sequence[str] = (),
        *,
        probe: bool = False,
        progress: Progress | None = None,
    ) -> list[Outcome]:
        """Carry out approved requests together, all of them unless some are named.

        Raises:
            InputError: one is not approved.
        """
        with self._writing(resuming=False):
            takedowns = Takedowns(self._opened, progress=progress)
            takedowns.settle()
            journal = self._intake.journal
            named = {row.number: row for row in (find(journal, name) for name in which)}
            rows = list(named.values()) or [
                row for row in journal.filed() if row.state == "approved"
            ]
            outcomes = {outcome.number: outcome for outcome in takedowns.run(rows, probe=probe)}
            outcomes |= {outcome.number: outcome for outcome in takedowns.resume()}
            return [outcomes[number] for number in sorted(outcomes)]

    def refuse(self, which: str, reason: str, sender: str | None = None) -> Listed:
        """Refuse a request; what it fenced answers again."""
        with self._writing(resuming=False):
            return self._listed(
                self._intake.refuse(find(self._intake.journal, which, sender), reason)
            )

    def withdraw(self, which: str, sender: str | None = None) -> int:
        """End a request that its sender takes back, or forget a refused one; its number."""
        with self._writing(resuming=False):
            row = find(self._intake.journal, which, sender)
            self._intake.withdraw(row)
            return row.number

    def restore(self, which: str, sender: str | None = None) -> int:
        """Lift the tombstones of a request, after a counter-notice; how many."""
        with self._writing(resuming=False):
            return self._intake.restore(find(self._intake.journal, which, sender))

    def under_review(self) -> list[tuple[str, str, int | None]]:
        """Documents that wait for a decision: id, subject, number of the takedown that found them."""
        return self._intake.under_review()

    def keep(self, ids: Sequence[str]) -> int:
        """Documents under review are no copies: they answer again; how many."""
        with self._writing(resuming=False):
            return self._intake.keep(ids)

    def takedown(
        self,
        request: Request,
        *,
        include_flagged: bool = False,
        probe: bool = True,
        after: After = "retrain",
        on_state: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        confirm: Callable[[Plan], bool] | None = None,
        on_plan: Callable[[Plan], None] | None = None,
    ) -> Outcome | None:
        """One request from submission to receipt: `Workspace.takedown`."""
        with self._writing(resuming=False, quick=True):
            takedowns = Takedowns(self._opened, on_state=on_state, progress=progress)
            earlier = Takedowns(self._opened, progress=progress)

            def prepare(number: int | None) -> None:
                self._opened.tidy()
                earlier.settle(number)

            if self._intake.journal.find(request.id, request.claimant.contact) is not None:
                prepare(None)
                known = takedowns.known(request)
                if known is not None:
                    return known
            outcome = takedowns.one(
                request,
                include_flagged=include_flagged,
                probe=probe,
                decision=Decision(after=after),
                confirm=confirm,
                on_plan=on_plan,
                prepare=prepare,
            )
            earlier.resume()
            return outcome

    def takedown_many(
        self,
        requests: Sequence[Request],
        *,
        include_flagged: bool = False,
        probe: bool = False,
        after: After = "retrain",
        on_state: Callable[[str], None] | None = None,
        progress: Progress | None = None,
        confirm: Callable[[Sequence[Plan]], bool] | None = None,
    ) -> many.Many | None:
        """Many requests at once: fenced together, compared in one pass, every shard retrained once.

        Args:
            confirm: shown all plans; if it says no, what this call filed is taken back, and None is
                returned.

        Raises:
            InputError: one was refused, withdrawn or restored before, or has the id of another whose
                case is there and asks for something else; nothing was filed.
        """
        with self._writing(resuming=False):
            takedowns = Takedowns(self._opened, on_state=on_state, progress=progress)
            takedowns.settle()
            return many.take_down(
                self._opened,
                takedowns,
                requests,
                include_flagged=include_flagged,
                probe=probe,
                after=after,
                on_state=on_state,
                confirm=confirm,
            )

    def resume(self, *, progress: Progress | None = None) -> list[Outcome]:
        """Finish what a crash or a foreign recipe left unfinished."""
        with self._writing(resuming=False):
            return Takedowns(self._opened, progress=progress).resume()

    def receipt(self, which: str, sender: str | None = None) -> Path:
        """The receipt of a takedown.

        Raises:
            NotFound: it has none.
        """
        row = find(self._intake.journal, which, sender)
        if row.receipt is None:
            raise NotFound(f"Takedown {row.number} is {row.state} and has no receipt.")
        return self._opened.path / "receipts" / row.receipt

    def prove(self, receipt: Path, out: Path, since: LogHead | None = None) -> LogHead:
        """Write the signed proof that a receipt stands in the log; the log's head."""
        from llm_unlearn.takedown.proof import write_proof

        seed = self._opened.keyring.secret("signing")
        return write_proof(receipt.parent, int(receipt.stem), out, seed, since=since)

    def copies(self) -> list[Entry]:
        """Registered copies outside."""
        return Copies(self._opened.database, self._opened.keyring).all()

    def register(
        self,
        kind: Kind,
        where: str,
        *,
        subjects: Sequence[str] = (),
        sealed: bool = False,
        days: int = DAYS,
    ) -> Entry:
        """Register a copy outside, so that takedowns list it."""
        with self._writing():
            register = Copies(self._opened.database, self._opened.keyring)
            return register.add(kind, where, subjects=subjects, sealed=sealed, days=days)

    def copy_gone(self, number: int) -> Entry:
        """Record that a registered copy is no longer there."""
        with self._writing():
            return Copies(self._opened.database, self._opened.keyring).settle(number)
