"""Correct a document (GDPR Article 16): the old one goes by a takedown, the new one comes, in one step.

Guarantees: one transaction fences the old document with its copies and makes the new one live, so that
whatever crash comes and whoever looks, never both serve and never neither (but for a new one that is a copy
of what an undecided request names: it is fenced at once); from then on it is a takedown like any other,
which `resume` finishes to a receipt. Before that transaction nothing has changed. The
state afterwards is that of a workspace that never had the old document and took the new one in now.

Not guaranteed: that an adapter knows the new words before it was trained on them. `correct` trains the
shards concerned last of all; after a crash `train` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_unlearn.documents import Document
from llm_unlearn.errors import AccessDenied, InputError
from llm_unlearn.ingest import check_subject, new_record
from llm_unlearn.opened import Opened
from llm_unlearn.retrieval.vault import NewRecord
from llm_unlearn.separation import decide
from llm_unlearn.sisa.build import Progress
from llm_unlearn.sisa.layout import Declared
from llm_unlearn.takedown.intake import Decision
from llm_unlearn.takedown.journal import After
from llm_unlearn.takedown.looking import watching
from llm_unlearn.takedown.machine import Outcome, Takedowns
from llm_unlearn.takedown.plan import Plan, make_plan
from llm_unlearn.takedown.request import Request
from llm_unlearn.takedown.tombstones import Tombstones

REASON = "correction (GDPR Article 16)"


@dataclass(frozen=True)
class Corrected:
    """What became of a correction: the takedown of the old document, and where the new ones went.

    Attributes:
        fates: by id, `store` or `corpus`.
        shards: shards that have to be trained for the new words to be known.
    """

    outcome: Outcome
    fates: dict[str, str]
    shards: tuple[int, ...]


def correct(
    opened: Opened,
    old: str,
    documents: Sequence[Document],
    *,
    probe: bool = True,
    after: After = "retrain",
    on_state: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    confirm: Callable[[Plan], bool] | None = None,
) -> Corrected | None:
    """Carry it out; the caller holds the writer's lock.

    Args:
        old: id of the document that is wrong.
        documents: what takes its place, each under an id that is not taken.

    Raises:
        NotFound: there is no live document of that id.
        AccessDenied: it is under a legal hold.
        InputError: a new document cannot come in, or is itself among what would go.
    """
    earlier = Takedowns(opened, progress=progress)
    earlier.settle()
    records, shards = _prepare(opened, old, documents)
    plan = make_plan(opened, Request.internal(ids=[old], reason=REASON))
    if old not in {item.id for item in plan.removed}:
        raise AccessDenied(
            f"Document {old!r} is under a legal hold: it may not be deleted.",
            "Lift the hold first.",
        )
    if confirm is not None and not confirm(plan):
        return None
    staged = opened.vault.add(records, "staged")

    def come_in() -> None:
        with watching(opened, staged):
            opened.vault.set_state(staged, "live")

    try:
        machine = Takedowns(opened, on_state=on_state, progress=progress)
        outcome = machine.replace(
            plan,
            come_in,
            decision=Decision(after=after),
            probe=probe,
        )
    except BaseException:
        # before acceptance they are still staged; after it they are live, and stay
        left = [record.handle for record in opened.vault.records(states=("staged",))]
        opened.vault.delete(handle for handle in staged if handle in left)
        raise
    earlier.resume()
    fates = {new.id: new.fate for new in records}
    return Corrected(outcome, fates, shards)


def _prepare(
    opened: Opened, old: str, documents: Sequence[Document]
) -> tuple[list[NewRecord], tuple[int, ...]]:
    """The new records, and the shards in which they will train."""
    if not documents:
        raise InputError("There is no document to take the old one's place.", "Give at least one.")
    tombstones = Tombstones(opened.database, opened.keyring)
    placement, subjects = opened.training.placement, dict[bytes, tuple[Declared, str]]()
    records, shards = [], set[int]()
    for document in documents:
        if document.id == old or opened.vault.find(opened.vault.mark("id", document.id)):
            raise InputError(
                f"The id {document.id!r} is taken: receipts and ledger name one text by it.",
                f"Give the corrected document an id of its own, such as {old}.2.",
            )
        refused = tombstones.refuses(document)
        # much like something removed is what a correction is, an earlier one's too
        if refused is not None and not refused.startswith("it is much like"):
            raise InputError(
                f"Document {document.id!r} may not come in: {refused}.", "Nothing was changed."
            )
        decision = decide(document, opened.config.separation, own_shards=placement.own_shards)
        if decision.fate == "refused":
            raise InputError(
                f"The policy refuses document {document.id!r} ({decision.reason}), so nothing would "
                "take the old one's place.",
                "Correct its licence or tags, or take the old one down.",
            )
        if decision.fate == "corpus":
            if placement.asks:
                check_subject(document, placement, opened.vault, subjects)
            said = subjects.get(opened.vault.mark("subject", document.subject))
            mark = opened.vault.mark("subject", document.subject)
            shards.add(opened.layout.shard(mark, said[0]) if said else opened.layout.shard(mark))
        records.append(
            new_record(document, decision, lambda: opened.store, opened.ledger.generation)
        )
    return records, tuple(sorted(shards))
