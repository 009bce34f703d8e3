"""The state machine of one takedown, from acceptance to receipt.

    fenced -> deleted -> disposed -> retrained -> receipted

Guarantees: acceptance is one durable transaction, and from then on nothing live contains the text:
the store does not return it and every shard serves its last clean checkpoint. Each further step is
idempotent and recorded after it is done, so a process killed anywhere resumes and ends in the same
adapters, checkpoints, index and vault contents. Asked twice, it is done once.

What needs the removed text (probes, the residue scan) is done while the process that deletes still
holds it in memory; a takedown resumed by another process says "not probed" and "not scanned".
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import Damaged, UnlearnError
from llm_unlearn.opened import Opened
from llm_unlearn.pace import timed
from llm_unlearn.sisa.build import Progress, build, stale
from llm_unlearn.sisa.layout import slice_number
from llm_unlearn.takedown import receipt as receipts
from llm_unlearn.takedown.journal import After, Case, Filed, Journal
from llm_unlearn.takedown.plan import Plan
from llm_unlearn.takedown.tombstones import Tombstones
from llm_unlearn.takedown.verify import request_reference

if TYPE_CHECKING:
    from llm_unlearn.sisa.checkpoints import Listed
    from llm_unlearn.takedown.evidence import Evidence, Moments

_RULE = (
    "Every live document was compared with the texts of the request, folded to bare letters: equal "
    "letters (exact); word shingles or letters in common above a threshold (near-duplicate); one "
    "text within the other, or a long enough run of words in common (quotation); close vectors "
    "(paraphrase: shown to people, not deleted)."
)
_DISPOSAL = (
    "data keys overwritten with zeros in place and synced; then rows removed, pages zeroed and the "
    "write-ahead log truncated; checkpoint keys likewise, then their files removed"
)


@dataclass(frozen=True)
class Outcome:
    """What became of a takedown.

    Attributes:
        receipt: the receipt's path; None while retraining waits.
        reference: what the claimant is given to recognise their receipt; None when it was
            receipted earlier (its salt is destroyed by then).
        waiting: why retraining waits, in words; None when done.
        already: whether the request had been receipted before.
        owed: exports that had learned the text, as the receipt calls them: destroy them.
    """

    number: int
    state: str
    receipt: Path | None
    reference: str | None
    waiting: str | None = None
    already: bool = False
    owed: tuple[str, ...] = ()


class Takedowns:
    """Runs takedowns over one workspace that this process may write to.

    Args:
        on_state: told of each state as it is reached.
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
        self._journal = Journal(opened.database, opened.keyring)
        self._tombstones = Tombstones(opened.database, opened.keyring)
        self._on_state = on_state or (lambda _state: None)
        self._progress = progress

    def run(self, plan: Plan, *, probe: bool = True, after: After = "retrain") -> Outcome:
        """Accept a plan and carry it out; the request must not be `known`.

        Args:
            after: what follows the disposal.
            probe: measure leakage before, rolled back and after (loads the base model).
        """
        from llm_unlearn.takedown.evidence import Evidence

        evidence = Evidence.gather(self._opened, plan, probe=probe)
        filed = self._accept(plan, after)
        return self._carry_out(filed, evidence)

    def resume(self) -> list[Outcome]:
        """Finish every accepted takedown that has no receipt yet, oldest first."""
        self._journal.sweep()
        return [self._carry_out(filed, None) for filed in self._journal.pending()]

    def settle(self) -> None:
        """Bring every unfinished takedown to where nothing is left of it, and retrain nothing yet.

        So that a new demand need not wait, unfenced, for the retraining of an earlier one. One that
        lacks only its receipt gets it: its number in the chain may be fixed already.
        """
        from llm_unlearn.takedown.evidence import Moments

        self._journal.sweep()
        for filed in self._journal.pending():
            if filed.state == "retrained":
                self._carry_out(filed, None)
            else:
                self._erase(filed, self._journal.case(filed), Moments(self._opened, None))

    def known(self, request_id: str) -> Outcome | None:
        """What became of a request that was accepted before (finishing it now), or None."""
        filed = self._journal.find(request_id)
        if filed is None:
            return None
        if filed.state != "receipted":
            return self._carry_out(filed, None)
        name = filed.receipt or ""
        path = self._opened.path / "receipts" / name
        return Outcome(filed.number, filed.state, path, None, already=True)

    def _accept(self, plan: Plan, after: After) -> Filed:
        opened = self._opened
        salt = os.urandom(receipts.SALT_BYTES)
        served = {s.shard: s.serving.name for s in opened.states() if s.serving}
        before = receipts.commit_state(
            salt, store=_store_digest(opened), adapters=_adapter_digests(opened)
        )
        by_fate = [item.record.fate for item in plan.removed]
        case = Case(
            kind=plan.request.kind,
            request_id=plan.request.id,
            selectors=plan.request.selectors(),
            salt=salt.hex(),
            handles=[handle.hex() for handle in plan.handles],
            received=plan.request.received_text(),
            acknowledged=_now(),
            closure=_closure(opened, plan),
            store_count=by_fate.count("store"),
            corpus_count=by_fate.count("corpus"),
            held=plan.held,
            before=before,
            served=served,
            after=after,
            touched=[work.shard for work in plan.shards],
            copies=[
                receipts.Copy(kind="export", label=export.label, status="owed")
                for export in plan.owed
            ],
        )
        documents = [opened.document(i.record) for i in plan.removed if i.record.fate != "refused"]
        with opened.database.transaction():
            filed = self._journal.open_case(case)
            opened.vault.set_state(plan.handles, "fenced")
            self._tombstones.add(documents, plan.request, filed.mark)
        self._on_state("fenced")
        return filed

    def _carry_out(self, filed: Filed, evidence: Evidence | None) -> Outcome:
        """Go from whatever state a case is in to its receipt."""
        from llm_unlearn.takedown.evidence import Moments

        opened = self._opened
        case = self._journal.case(filed)
        reference = request_reference(case.request_id, bytes.fromhex(case.salt))
        moments = Moments(opened, evidence)
        filed = self._erase(filed, case, moments)
        if filed.state == "disposed":
            try:
                if case.after == "retrain":
                    self._retrain({shard.shard for shard in case.shards})
                case.probes = moments.after()
            except UnlearnError as error:
                # nothing of the text is left; utility waits until what is named is put right
                return Outcome(filed.number, filed.state, None, reference, waiting=str(error))
            filed = self._advance(filed, "retrained", case)
        if case.receipt is None:
            scan = moments.scan()
            case.receipt = self._receipt(case, scan).model_dump_json()
            filed = self._advance(filed, "retrained", case)
        written = receipts.write_receipt(
            opened.path / "receipts",
            receipts.Receipt.model_validate_json(case.receipt),
            opened.keyring.secret("signing"),
        )
        self._journal.close(filed, written.name)
        self._on_state("receipted")
        owed = tuple(copy.label for copy in case.copies if copy.status == "owed")
        return Outcome(filed.number, "receipted", written, reference, owed=owed)

    def _erase(self, filed: Filed, case: Case, moments: Moments) -> Filed:
        """From the fence to the disposal of every checkpoint that saw the text."""
        if filed.state == "fenced":
            moments.before_and_rolled_back(case.served)
            self._opened.vault.delete([bytes.fromhex(handle) for handle in case.handles])
            filed = self._advance(filed, "deleted", case)
        if filed.state == "deleted":
            self._dispose(filed, case)
            filed = self._advance(filed, "disposed", case)
        return filed

    def _advance(self, filed: Filed, state: str, case: Case) -> Filed:
        moved = self._journal.advance(filed, state, case)  # type: ignore[arg-type]
        if filed.state != state:
            self._on_state(state)
        return moved

    def _dispose(self, filed: Filed, case: Case) -> None:
        opened = self._opened
        doomed = stale(opened.wanted(), opened.checkpoints.listed())
        salt = bytes.fromhex(case.salt)
        known = {(item.shard, item.slice) for item in case.checkpoints}
        for item in doomed:
            shard, number = (
                item.shard,
                slice_number(item.name, opened.training.slices, opened.training.orders),
            )
            if (shard, number) not in known:
                digest = _digest(opened, item)
                made = receipts.commit_checkpoint(salt, shard=shard, slice=number, digest=digest)
                case.checkpoints.append(made)
        gone = {item.shard for item in case.checkpoints}
        case.shards = [
            receipts.Shard(
                shard=s.shard,
                resumed_from=0 if case.after == "drop" else s.clean,
                retrained=len(s.missing) if self._retrains(case, s.shard) else 0,
            )
            for s in opened.states()
            if s.shard in gone
        ]
        if case.after == "drop":
            self._drop(filed, case, doomed)
            return
        # what is about to go is written down first: a resumed process cannot read it any more
        self._journal.advance(filed, "deleted", case)
        opened.checkpoints.dispose(doomed)

    def _retrains(self, case: Case, shard: int) -> bool:
        return case.after == "retrain" and shard not in self._opened.dropped()

    def _drop(self, filed: Filed, case: Case, doomed: list[Listed]) -> None:
        """Retire the touched shards: from now on nothing serves for them nor is trained for them."""
        opened = self._opened
        listed = opened.checkpoints.listed().values()
        clean = [i for i in listed if i.shard in case.touched and i not in doomed]
        case.retired = sorted({*case.retired, *(item.name for item in clean)})
        self._journal.advance(filed, "deleted", case)
        with opened.database.transaction():
            dropped = sorted(opened.dropped().union(case.touched))
            opened.database.set_value("dropped shards", json.dumps(dropped).encode())
        opened.checkpoints.dispose([*doomed, *clean])

    def _retrain(self, shards: set[int]) -> None:
        """Build what the touched shards lack; the others wait for `train`."""
        opened = self._opened
        shards = shards - opened.dropped()
        opened.checkpoints.dispose(stale(opened.wanted(), opened.checkpoints.listed()))
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

    def _receipt(self, case: Case, scan: receipts.Scan | None) -> receipts.Receipt:
        opened = self._opened
        head = receipts.chain_head(opened.path / "receipts")
        tree = receipts.log_tree(opened.path / "receipts")
        recipe = opened.saved_recipe()
        return receipts.build_receipt(
            number=head.number + 1,
            previous=head.digest,
            log=receipts.LogPlace(size=len(tree.leaves), root=tree.root().hex()),
            request=receipts.commit_request(
                bytes.fromhex(case.salt),
                kind=case.kind,
                id=case.request_id,
                selectors=case.selectors,
            ),
            times=receipts.Times(
                received=case.received, acknowledged=case.acknowledged, finished=_now()
            ),
            closure=case.closure,
            done=receipts.Done(
                documents_deleted=receipts.ByFate(store=case.store_count, corpus=case.corpus_count),
                documents_held=case.held,
                keys_destroyed=len(case.handles) + len(case.checkpoints) + len(case.retired),
                checkpoints=tuple(case.checkpoints),
                disposal=_DISPOSAL,
                shards=tuple(case.shards),
            ),
            state_after=receipts.State(
                store=_store_digest(opened),
                adapters=tuple(
                    receipts.AdapterDigest(shard=shard, digest=digest)
                    for shard, digest in sorted(_adapter_digests(opened).items())
                ),
                recipe=opened.recipe_digest().hex(),
                base_model=recipe.base_model if recipe else opened.models.base_digest,
                embedder=opened.models.embedder.digest,
                environment=recipe.versions if recipe else {},
                code_version=importlib.metadata.version("llm-unlearn"),
            ),
            state_before=case.before,
            scan=scan,
            probes=case.probes,
            copies=case.copies,
            waiting=sum(len(s.missing) for s in opened.states() if s.shard in case.touched)
            if case.after != "retrain"
            else 0,
        )


def _closure(opened: Opened, plan: Plan) -> receipts.Closure:
    def count(*kinds: str) -> receipts.ByFate:
        fates = [i.record.fate for i in (*plan.removed, *plan.flagged) if i.kind in kinds]
        return receipts.ByFate(store=fates.count("store"), corpus=fates.count("corpus"))

    removed = sum(item.kind == "paraphrase" for item in plan.removed)
    thresholds = opened.config.takedown.model_dump()
    return receipts.Closure(
        rule=_RULE,
        thresholds={k: receipts.decimal(float(v)) for k, v in sorted(thresholds.items())},
        compared=plan.compared,
        requested=count("requested"),
        exact=count("exact"),
        near_duplicate=count("near-duplicate"),
        quotation=count("quotation"),
        flagged=count("paraphrase"),
        review=receipts.Review(removed=removed, open=len(plan.flagged)),
    )


def _store_digest(opened: Opened) -> str:
    return hashlib.sha256(opened.store.canonical_bytes()).hexdigest()


def _adapter_digests(opened: Opened) -> dict[int, str]:
    listed = opened.checkpoints.listed()
    return {
        state.shard: _digest(opened, listed[state.serving.name])
        for state in opened.states()
        if state.serving
    }


def _digest(opened: Opened, item: Listed) -> str:
    """Digest of a checkpoint; of one that cannot be read any more, 64 zeros.

    A damaged file must not keep a takedown from being accepted.
    """
    try:
        return opened.checkpoints.digest(item)
    except Damaged:
        return "0" * 64


def _now() -> str:
    return receipts.timestamp(datetime.now(UTC))
