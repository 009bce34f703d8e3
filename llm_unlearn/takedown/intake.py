"""Requests as they come in and are decided: submitted, approved in whole or in part, refused, withdrawn,
and after a counter-notice restored.

Guarantees: `submit` fences, in one durable transaction, everything that a request names and every copy of
it with the same letters, and only then is there an acknowledgement; its time does not grow with the
workspace. `fence_copies` fences the other copies, before anybody decides (see `looking`). What is refused,
withdrawn or declined answers again at once, unless another open request holds it, in the transaction that
ends the request. `approve` fences all copies, puts possible ones under review, bars what a legal hold
keeps, and sets the tombstones, of what is held too, in one transaction. `restore` lifts a request's
tombstones; nothing comes back by itself.

The caller holds the workspace's lock.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.opened import Opened
from llm_unlearn.retrieval import bars, fences
from llm_unlearn.takedown import receipt as receipts
from llm_unlearn.takedown import reviews
from llm_unlearn.takedown.account import Earlier, closure_of
from llm_unlearn.takedown.copies import owed_copies
from llm_unlearn.takedown.journal import STARTED, UNDECIDED, After, Case, Filed, Journal
from llm_unlearn.takedown.lookup import look_up
from llm_unlearn.takedown.plan import Plan, Planned, as_now, shards_of
from llm_unlearn.takedown.request import Request
from llm_unlearn.takedown.tombstones import Tombstones
from llm_unlearn.takedown.verify import request_reference


@dataclass(frozen=True)
class Acknowledged:
    """A request that is filed, and fenced.

    Attributes:
        reference: what the claimant is given to recognise their receipt.
        fenced: documents that it took out of use.
        due: the day by which it must be done; None where none is set.
    """

    number: int
    id: str
    reference: str
    acknowledged: str
    fenced: int
    due: str | None


@dataclass(frozen=True)
class Decision:
    """What a person decided about a plan.

    Attributes:
        declined: ids of documents that are not accepted; they are served again.
        reason: why, as the claimant is told.
        keep_flagged: the possible paraphrases are none, and are served on.
        kept: ids of possible paraphrases that are none.
        after: what follows the disposal.
    """

    declined: tuple[str, ...] = ()
    reason: str | None = None
    keep_flagged: bool = False
    kept: tuple[str, ...] = ()
    after: After = "retrain"


_BLIND = (
    "That every paraphrase was found: without the store's own embedder and chunk settings, paraphrases "
    "were not looked for in full."
)
ACCEPTED = Decision()
"""All of it, with the possible paraphrases left to people."""


class Intake:
    """Takes in and decides the requests of one workspace."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.journal = Journal(opened.database, opened.keyring)
        self._tombstones = Tombstones(opened.database, opened.keyring)

    def submit(
        self,
        requests: Sequence[Request],
        *,
        ahead: bool = False,
        include_flagged: bool = False,
        after: After = "retrain",
    ) -> list[tuple[Filed, Acknowledged]]:
        """File requests and fence what they name, all in one transaction.

        Args:
            ahead: they are approved already, whatever else falls under them.

        Raises:
            NotFound: one names a subject, id or source that no document has. Nothing was filed.
            InputError: one is filed already.
        """
        opened, made = self._opened, []
        with opened.database.transaction():
            for request in requests:
                found = look_up(opened, request)
                live = [record.handle for record in found if record.state == "live"]
                ours = [record.handle for record in found if record.state != "held"]
                opened.vault.set_state(live, "fenced")
                salt = os.urandom(receipts.SALT_BYTES)
                case = Case(
                    kind=request.kind,
                    request_id=request.id,
                    request=request,
                    selectors=request.selectors(),
                    salt=salt.hex(),
                    handles=[handle.hex() for handle in ours],
                    received=request.received_text(),
                    acknowledged=now(),
                    ahead=ahead,
                    include_flagged=include_flagged,
                    after=after,
                )
                filed = self.journal.open_case(case)
                held = [record.handle for record in found if record.state == "held"]
                fences.add(opened.database, held, filed.mark)
                due = request.deadline
                made.append(
                    (
                        filed,
                        Acknowledged(
                            filed.number,
                            request.id,
                            request_reference(request.id, salt),
                            case.acknowledged,
                            len(live),
                            due.isoformat() if due else None,
                        ),
                    )
                )
        return made

    def fence_copies(self, filed: Filed, plan: Plan | None) -> int:
        """Fence what a plan adds to an undecided request; how many documents were live until now.

        Possible paraphrases too, unless `takedown.fence_flagged` is off.

        Args:
            plan: None where nothing falls under the request.
        """
        opened, case = self._opened, self.journal.case(filed)
        found = list(plan.removed) if plan else []
        if plan and opened.config.takedown.fence_flagged:
            found += plan.flagged
        case.looked = True
        with opened.database.transaction():
            present = opened.vault.find_many([item.record.handle for item in found])
            ours = [handle for handle, record in present.items() if record.state != "held"]
            live = [handle for handle in ours if present[handle].state == "live"]
            case.handles = sorted({*case.handles, *(handle.hex() for handle in ours)})
            opened.vault.set_state(live, "fenced")
            held = [handle for handle, record in present.items() if record.state == "held"]
            if plan:
                held += plan.kept_back
                if opened.config.takedown.fence_flagged:
                    held += [item.record.handle for item in plan.held_flagged]
            fences.add(opened.database, held, filed.mark)
            self.journal.advance(filed, filed.state, case)
        return len(live)

    def unlook(self, filed: Filed) -> None:
        """Copies of an undecided request must be looked for again, by whoever writes next."""
        case = self.journal.case(filed)
        case.looked = False
        self.journal.advance(filed, filed.state, case)

    def approve(
        self,
        filed: Filed,
        plan: Plan,
        decision: Decision = ACCEPTED,
        *,
        start: bool,
        earlier: Earlier | None = None,
    ) -> Filed:
        """Accept a plan, in whole or in part; the case is then `fenced` (started) or `approved`.

        Args:
            earlier: the state before, where several are approved at once.

        Raises:
            InputError: what is declined or kept is not in the plan, nothing is left, or no reason is
                given.
        """
        opened, case = self._opened, self.journal.case(filed)
        plan = as_now(opened, plan)
        going = _without(plan.removed, decision.declined, "removed")
        open_ = [] if decision.keep_flagged else _without(plan.flagged, decision.kept, "flagged")
        declined = len(plan.removed) - len(going)
        if declined and not (decision.reason or "").strip():
            raise InputError("A part is declined without a reason.", "Give one: --reason.")
        if not going and not plan.held:
            raise InputError("Nothing of the request is accepted.", "Refuse it, with the reason.")
        fence = opened.config.takedown.fence_flagged
        handles = [item.record.handle for item in going]
        flagged = [item.record.handle for item in open_]
        # what a hold keeps is looked at when it ends
        later = [] if decision.keep_flagged else [i.record.handle for i in plan.held_flagged]
        before = [bytes.fromhex(handle) for handle in case.handles]
        loose = {*before, *(i.record.handle for i in plan.removed)} - set(handles)
        loose |= fences.of(opened.database, filed.mark) - set(handles)
        loose -= {*flagged, *later} if fence else set()
        earlier = earlier or Earlier.gather(opened, {*before, *handles})
        case.before = earlier.commit(bytes.fromhex(case.salt))
        case.touched = sorted({*earlier.touched(handles), *shards_of(opened, plan.kept_back)})
        case.served, case.served_inputs = earlier.served(case.touched)
        case.notes = [*earlier.notes(case.touched), *([_BLIND] if plan.blind else [])]
        fates = [item.record.fate for item in going]
        case.handles = [handle.hex() for handle in handles]
        case.contents = [item.record.content.hex() for item in going]
        case.kept = [handle.hex() for handle in plan.kept_back]
        case.store_count, case.corpus_count = fates.count("store"), fates.count("corpus")
        case.held = plan.held
        case.closure = closure_of(
            opened,
            plan,
            open_=len(open_) + len(later),
            fenced=len(flagged) + len(later) if fence else 0,
            declined=declined,
        )
        case.reason, case.after = decision.reason, decision.after
        case.copies = owed_copies(opened, plan)
        records = [i.record for i in going]
        records += opened.vault.find_many(plan.kept_back).values()
        documents = [opened.document(record) for record in records if record.fate != "refused"]
        with opened.database.transaction():
            if as_now(opened, plan) is not plan:
                raise InputError(
                    "A document of this request came under a legal hold in this moment.",
                    "Approve it again.",
                )
            opened.vault.set_state(handles, "fenced")
            if fence:
                opened.vault.set_state(flagged, "fenced")
                reviews.add(opened.database, [*flagged, *later], filed.mark)
                fences.remember(opened.database, later)
            fences.drop(opened.database, filed.mark)
            self._free(loose, but=filed)
            bars.add(opened.database, plan.kept_back, filed.mark)
            self._tombstones.add(documents, plan.request, filed.mark, whole=not declined)
            return self.journal.advance(filed, "fenced" if start else "approved", case)

    def refuse(self, filed: Filed, reason: str) -> Filed:
        """Refuse a request that nothing was destroyed for; what it fenced answers again.

        The case stays, sealed, so that the reason can be told; `withdraw` ends it.

        Raises:
            InputError: it is too late, or no reason is given.
        """
        if not reason.strip():
            raise InputError("A refusal needs a reason.", "The claimant must be told why.")
        self._undecided(filed, "refused")
        case = self.journal.case(filed)
        case.reason = reason
        with self._opened.database.transaction():
            self._undo(filed, case)
            case.handles, case.contents = [], []
            return self.journal.advance(filed, "refused", case)

    def withdraw(self, filed: Filed) -> None:
        """End a request that its sender takes back, or a refused one; its case is destroyed.

        Raises:
            InputError: it is too late.
        """
        self._undecided(filed, "withdrawn", also="refused")
        case = self.journal.case(filed)
        with self._opened.database.transaction():
            self._undo(filed, case)
            self.journal.end(filed, "withdrawn")

    def discard(self, filed: Filed) -> None:
        """As `withdraw`, and only its number is remembered: it was not meant, or nothing falls under it."""
        with self._opened.database.transaction():
            self._undo(filed, self.journal.case(filed))
            self.journal.discard(filed)

    def restore(self, filed: Filed) -> int:
        """Accept again what a request had removed; how many tombstones were lifted.

        Raises:
            InputError: it has not been carried out.
        """
        if filed.state not in ("receipted", "restored"):
            raise InputError(
                f"Takedown {filed.number} is {filed.state}: nothing was removed for it.",
                "A request that is not carried out is refused or withdrawn.",
            )
        with self._opened.database.transaction():
            lifted = self._tombstones.lift(filed.mark)
            self.journal.end(filed, "restored")
        return lifted

    def keep(self, ids: Sequence[str]) -> int:
        """End the review of documents that are no copies: they answer again; how many.

        Raises:
            NotFound: one is not under review.
        """
        opened = self._opened
        waiting = reviews.under_review(opened.database)
        handles = [opened.vault.mark("id", name) for name in ids]
        for name, handle in zip(ids, handles, strict=True):
            if handle not in waiting:
                raise NotFound(f"{name!r} is not under review.", "See `takedown review`.")
        with opened.database.transaction():
            reviews.close(opened.database, handles)
            self._free(set(handles), but=None)
        return len(handles)

    def under_review(self) -> list[tuple[str, str, int | None]]:
        """Documents that wait for a decision: id, subject, number of the takedown that found them."""
        opened = self._opened
        waiting = reviews.under_review(opened.database)
        records = opened.vault.find_many(list(waiting))
        numbers = {filed.mark: filed.number for filed in self.journal.filed()}
        found = []
        for handle, record in records.items():
            entry = opened.ledger.entry(record)
            found.append((entry.id, entry.subject, numbers.get(waiting[handle])))
        return sorted(found)

    def _undecided(self, filed: Filed, wanted: str, also: str = "") -> None:
        if filed.state not in (*UNDECIDED, also):
            done = "is being carried out" if filed.state in STARTED else f"is {filed.state}"
            raise InputError(
                f"Takedown {filed.number} {done} and cannot be {wanted}.",
                "A counter-notice brings text back: takedown restore."
                if filed.state == "receipted"
                else "",
            )

    def _undo(self, filed: Filed, case: Case) -> None:
        """Take back what submission and approval did. Inside a transaction."""
        database = self._opened.database
        waiting = reviews.of(database, filed.mark) | fences.of(database, filed.mark)
        for marks in (reviews, bars, fences):
            marks.drop(database, filed.mark)
        self._tombstones.lift(filed.mark)
        self._free({*waiting, *(bytes.fromhex(h) for h in case.handles)}, but=filed)

    def _free(self, handles: Collection[bytes], but: Filed | None) -> None:
        """Let fenced documents answer again, unless another open request or a review holds them."""
        if not handles:
            return
        opened = self._opened
        kept = {*reviews.under_review(opened.database), *fences.asked(opened.database)}
        for other, case in self.journal.open_cases():
            if but is None or other.number != but.number:
                kept |= {bytes.fromhex(handle) for handle in case.handles}
        found = opened.vault.find_many([handle for handle in handles if handle not in kept])
        fenced = [handle for handle, record in found.items() if record.state == "fenced"]
        opened.vault.set_state(fenced, "live")
        fences.forget(opened.database, found)  # of what a hold keeps


def _without(items: Sequence[Planned], ids: Sequence[str], what: str) -> list[Planned]:
    there = {item.id for item in items}
    for name in ids:
        if name not in there:
            raise InputError(f"{name!r} is not among what is {what}.", "Look at the plan.")
    return [item for item in items if item.id not in ids]


def now() -> str:
    """This moment as a receipt writes it."""
    return receipts.timestamp(datetime.now(UTC))
