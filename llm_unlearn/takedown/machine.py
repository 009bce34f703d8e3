"""The state machine of takedowns, from submission to receipt.

    received -> fenced -> deleted -> disposed -> retrained -> receipted

Guarantees: submission is one durable transaction, and from then on nothing live contains what was named:
the store does not return it and every shard serves its last clean checkpoint; approval adds the copies.
Each further step is idempotent and recorded after it is done, so a process killed anywhere resumes and
ends in the same adapters, checkpoints, index and vault contents. Asked twice, it is done once. However
many takedowns are carried out together, every shard is retrained once.

What needs the removed text (probes, the residue scan) is done while the process that deletes still
holds it in memory; a takedown resumed by another process says "not probed" and "not scanned".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import AccessDenied, InputError, NotFound, UnlearnError
from llm_unlearn.opened import Opened
from llm_unlearn.pace import timed
from llm_unlearn.sisa.build import Progress, build, stale
from llm_unlearn.takedown import receipt as receipts
from llm_unlearn.takedown.account import Earlier, Facts, make_receipt
from llm_unlearn.takedown.disposal import Running, dispose
from llm_unlearn.takedown.intake import Decision, Intake, now
from llm_unlearn.takedown.journal import Filed, State
from llm_unlearn.takedown.looking import look, plans
from llm_unlearn.takedown.merkle import leaf_hash
from llm_unlearn.takedown.plan import Plan, as_now
from llm_unlearn.takedown.request import Request
from llm_unlearn.takedown.starting import keep_held, start
from llm_unlearn.takedown.verify import request_reference

if TYPE_CHECKING:
    from llm_unlearn.takedown.evidence import Evidence, Moments


def check_open(filed: Filed, request: Request) -> None:
    """Check that a request may go on.

    Raises:
        InputError: it was refused or withdrawn, or what it removed was allowed back.
    """
    if filed.state in ("refused", "withdrawn", "restored"):
        became = "carried out and restored" if filed.state == "restored" else filed.state
        raise InputError(
            f"The request {request.id!r} was {became} (takedown {filed.number}).",
            "Send it again under another id.",
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a takedown.

    Attributes:
        number: its number in the journal.
        receipt: the receipt's path; None while it waits.
        reference: what the claimant is given to recognise their receipt; None when it was
            receipted earlier (its salt is destroyed by then).
        waiting: why retraining or the receipt waits, in words; None when done.
        already: whether the request had been receipted before.
        owed: copies outside that hold the text, as the receipt calls them: destroy them.
        id: the request's id, where it is still known.
    """

    number: int
    state: str
    receipt: Path | None
    reference: str | None
    waiting: str | None = None
    already: bool = False
    owed: tuple[str, ...] = ()
    id: str | None = None


class Takedowns:
    """Runs takedowns over one workspace that this process may write to.

    Args:
        on_state: told of each state as it is reached, once for all that run together.
        progress: told of each optimizer step of retraining.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        on_state: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._opened = opened
        self.intake = Intake(opened)
        self._journal = self.intake.journal
        self._on_state = on_state or (lambda _state: None)
        self._progress = progress

    def one(
        self,
        request: Request,
        *,
        include_flagged: bool,
        probe: bool,
        decision: Decision,
        confirm: Callable[[Plan], bool] | None,
        on_plan: Callable[[Plan], None] | None,
        prepare: Callable[[int], None],
    ) -> Outcome | None:
        """One request from submission to receipt; None when `confirm` says no.

        Of what was not confirmed only the number is remembered.

        Args:
            prepare: called with its number once it is fenced; does what can wait until then.

        Raises:
            NotFound: nothing falls under it; it is discarded then.
        """
        ahead = confirm is None
        filed = self._journal.find(request.id, request.claimant.contact)
        new = filed is None
        if filed is None:
            filed, _ = self.intake.submit(
                [request], ahead=ahead, include_flagged=include_flagged, after=decision.after
            )[0]
            self._on_state("received")
        try:
            prepare(filed.number)
            plan = plans(self._opened, [filed], include_flagged=include_flagged)[0]
            if isinstance(plan, NotFound):
                raise plan
            if on_plan is not None:
                on_plan(plan)
            if confirm is not None:
                self.intake.fence_copies(filed, plan)  # people take their time
            agreed = confirm is None or confirm(plan)
        except BaseException as error:
            # approved ahead and interrupted, it is finished by whoever writes next; what cannot be
            # planned was not accepted
            if new and (confirm is not None or isinstance(error, UnlearnError)):
                self.intake.discard(filed)
            raise
        if not agreed:
            if new:
                self.intake.discard(filed)
            return None
        return self.approve_and_run([(filed, plan)], [decision], probe=probe)[0]

    def approve_and_run(
        self,
        pairs: Sequence[tuple[Filed, Plan]],
        decisions: Sequence[Decision],
        *,
        probe: bool,
    ) -> list[Outcome]:
        """Approve planned requests and carry them out together."""
        from llm_unlearn.takedown.evidence import Evidence

        pairs = [(filed, as_now(self._opened, plan)) for filed, plan in pairs]
        going = {i.record.handle: i.record for _, plan in pairs for i in plan.removed}
        evidence = Evidence.gather(self._opened, going.values(), probe=probe)
        fenced = {
            bytes.fromhex(handle) for row, _ in pairs for handle in self._journal.case(row).handles
        }
        fenced |= {handle for _, plan in pairs for handle in plan.handles}
        earlier = Earlier.gather(self._opened, fenced)
        with self._opened.database.transaction():
            rows = [
                self.intake.approve(filed, plan, decision, start=True, earlier=earlier)
                for (filed, plan), decision in zip(pairs, decisions, strict=True)
            ]
        self._on_state("fenced")
        return self._carry_out(rows, evidence)

    def replace(
        self, plan: Plan, also: Callable[[], None], *, decision: Decision, probe: bool
    ) -> Outcome:
        """Submit and approve a plan in one transaction with `also`, and carry it out."""
        from llm_unlearn.takedown.evidence import Evidence

        evidence = Evidence.gather(
            self._opened, [item.record for item in plan.removed], probe=probe
        )
        earlier = Earlier.gather(self._opened, plan.handles)
        with self._opened.database.transaction():
            if as_now(self._opened, plan) is not plan:
                raise AccessDenied(
                    "The document, or a copy of it, has come under a legal hold.",
                    "Release it first.",
                )
            filed, _ = self.intake.submit([plan.request])[0]
            filed = self.intake.approve(filed, plan, decision, start=True, earlier=earlier)
            also()
        self._on_state("fenced")
        return self._carry_out([filed], evidence)[0]

    def run(self, rows: Sequence[Filed], *, probe: bool = False) -> list[Outcome]:
        """Carry out approved requests together.

        Raises:
            InputError: one is not approved.
        """
        for row in rows:
            if row.state != "approved":
                raise InputError(
                    f"Takedown {row.number} is {row.state}, not approved.",
                    "Approve it first." if row.state == "received" else "",
                )
        from llm_unlearn.takedown.evidence import Evidence

        with self._opened.database.transaction():
            started = [start(self._opened, self._journal, row) for row in rows]
            cases = [self._journal.case(row) for row in started]
            handles = {bytes.fromhex(handle) for case in cases for handle in case.handles}
            found = self._opened.vault.find_many(sorted(handles))
            evidence = Evidence.gather(self._opened, found.values(), probe=probe)
        return self._carry_out(started, evidence)

    def resume(self) -> list[Outcome]:
        """Finish every takedown that was started or approved ahead and has no receipt yet."""
        self._journal.sweep()
        look(self._opened)
        started = [row for row in self._journal.pending() if row.state != "received"]
        return self._carry_out(started, None)

    def settle(self, but: int | None = None) -> None:
        """Bring every unfinished takedown to where nothing is left of it, and retrain nothing yet.

        Args:
            but: the number of one that is planned by its caller.

        So that a new demand need not wait, unfenced, for the retraining of an earlier one. One that
        lacks only its receipt gets it: its number in the chain may be fixed already.
        """
        from llm_unlearn.takedown.evidence import Moments

        self._journal.sweep()
        look(self._opened, but)
        pending = [row for row in self._journal.pending() if row.state != "received"]
        self._carry_out([row for row in pending if row.state == "retrained"], None)
        rest = [row for row in pending if row.state != "retrained"]
        self._erase([Running(r, self._journal.case(r)) for r in rest], Moments(self._opened, None))

    def known(self, request: Request) -> Outcome | None:
        """What became of a request that was submitted before (finishing it now); None if it is new,
        or waits for a decision.

        Raises:
            InputError: it was refused or withdrawn; or it waits, and this one asks for something else.
        """
        filed = self._journal.find(request.id, request.claimant.contact)
        if filed is None:
            return None
        check_open(filed, request)
        self._journal.check_same(filed, request)
        if filed.state == "received":
            return None
        if filed.state == "approved":
            return self.run([filed])[0]
        if filed.slot is not None and filed.receipt is None:
            return self._carry_out([filed], None)[0]
        path = self._opened.path / "receipts" / (filed.receipt or "")
        return Outcome(filed.number, filed.state, path, None, already=True, id=request.id)

    def _carry_out(self, rows: Sequence[Filed], evidence: Evidence | None) -> list[Outcome]:
        """Go from whatever state cases are in to their receipts."""
        from llm_unlearn.takedown.evidence import Moments

        opened = self._opened
        running = [Running(row, self._journal.case(row)) for row in rows]
        running.sort(key=lambda r: r.case.receipt is None)  # fixed numbers come first
        if len(running) > 1:
            for item in running:
                item.case.together = max(item.case.together, len(running))
        moments = Moments(opened, evidence, self._progress)
        self._erase(running, moments)
        waiting = self._retrain_all([r for r in running if r.filed.state == "disposed"], moments)
        outcomes: list[Outcome] = []
        missing: str | None = None
        done = [r for r in running if r.filed.state == "retrained"]
        if done:
            tree = receipts.log_tree(opened.path / "receipts")
            facts: Facts | None = None
            scan: receipts.Scan | None = None
            if any(r.case.receipt is None for r in done):
                try:
                    facts, scan = Facts.gather(opened), moments.scan()
                except UnlearnError as error:
                    missing = str(error)  # nothing is left; the receipt waits for what is named
        written_down: dict[int, str] = {}
        for item in done:
            if item.case.receipt is None:
                if facts is None:
                    continue
                made = make_receipt(opened, item.case, now(), facts, tree, scan)
                item.case.receipt = made.model_dump_json()
                self._advance(item, "retrained")
            fixed = receipts.Receipt.model_validate_json(item.case.receipt)
            written = receipts.write_receipt(
                opened.path / "receipts", fixed, opened.keyring.secret("signing")
            )
            if fixed.number > len(tree.leaves):
                tree.append(leaf_hash(written.read_bytes()))
            self._journal.close(item.filed, written.name)
            written_down[item.filed.number] = written.name
        if written_down:
            self._on_state("receipted")
        for item in running:
            case, name = item.case, written_down.get(item.filed.number)
            why = missing if item.filed.state == "retrained" else waiting
            outcomes.append(
                Outcome(
                    item.filed.number,
                    "receipted" if name else item.filed.state,
                    opened.path / "receipts" / name if name else None,
                    request_reference(case.request_id, bytes.fromhex(case.salt)),
                    waiting=None if name else why,
                    owed=tuple(c.label for c in case.copies if c.status == "owed"),
                    id=case.request_id,
                )
            )
        return sorted(outcomes, key=lambda outcome: outcome.number)

    def _retrain_all(self, running: Sequence[Running], moments: Moments) -> str | None:
        """Retrain what the cases need, each shard once; why it waits, or None."""
        if not running:
            return None
        wanted = {
            shard.shard for r in running if r.case.after == "retrain" for shard in r.case.shards
        }
        try:
            if any(r.case.after == "retrain" for r in running):
                self._retrain(wanted)
            probes = moments.after()
        except UnlearnError as error:
            # nothing of the text is left; utility waits until what is named is put right
            return str(error)
        for item in running:
            item.case.probes = probes
            self._advance(item, "retrained")
        self._on_state("retrained")
        return None

    def _erase(self, running: Sequence[Running], moments: Moments) -> None:
        """From the fence to the disposal of every checkpoint that saw the text."""
        fenced = [r for r in running if r.filed.state == "fenced"]
        if fenced:
            moments.before_and_rolled_back([r.case for r in fenced])
            # a kill, or the probing, may have left time for a legal hold
            with self._opened.database.transaction(durable=False):
                if sum([keep_held(self._opened, r.filed, r.case) for r in fenced]):
                    moments.forget()
                handles = {handle for r in fenced for handle in r.case.handles}
                self._opened.vault.delete([bytes.fromhex(handle) for handle in sorted(handles)])
            for item in fenced:
                self._advance(item, "deleted")
            self._on_state("deleted")
        deleted = [r for r in running if r.filed.state == "deleted"]
        if deleted:
            dispose(self._opened, deleted, self._advance)
            for item in deleted:
                self._advance(item, "disposed")
            self._on_state("disposed")

    def _advance(self, item: Running, state: State) -> None:
        item.filed = self._journal.advance(item.filed, state, item.case)

    def _retrain(self, shards: set[int]) -> None:
        """Build what the touched shards lack; the others wait for `train`."""
        opened = self._opened
        shards = shards - opened.dropped()
        old = stale(opened.wanted(), opened.checkpoints.listed())
        opened.checkpoints.dispose(item for item in old if item.shard in shards)
        states = [state for state in opened.states() if state.shard in shards]
        if any(state.missing for state in states):
            with timed(opened, states) as ready:
                opened.check_recipe()
                ready()
                build(
                    states,
                    opened.models.host,
                    opened.checkpoints,
                    opened.training,
                    opened.examples,
                    self._progress,
                )
