"""Checkpoints that had learned a removed text are disposed of, and the cases say which.

Guarantees: what goes is written into the cases, durably, before it goes, since a process that resumes
cannot read it any more; done again, it does what is left. Each checkpoint is named in every case whose
documents its shard had. Shards that had none of them are left as they are: what is out of use there, for a
review or for another request, was learned by no checkpoint that serves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from llm_unlearn.opened import Opened
from llm_unlearn.sisa.build import stale
from llm_unlearn.sisa.layout import slice_number
from llm_unlearn.takedown import receipt as receipts
from llm_unlearn.takedown.account import digest_of
from llm_unlearn.takedown.journal import Case, Filed, State

if TYPE_CHECKING:
    from llm_unlearn.sisa.checkpoints import Listed


@dataclass
class Running:
    """A takedown on its way, with its case."""

    filed: Filed
    case: Case


Advance: TypeAlias = Callable[[Running, State], None]
"""Records durably that a case has reached a state."""


def dispose(opened: Opened, running: Sequence[Running], advance: Advance) -> None:
    """Dispose of the touched shards' checkpoints that no longer equal what is asked for; write down which,
    first."""
    touched = {shard for item_ in running for shard in item_.case.touched}
    doomed = [i for i in stale(opened.wanted(), opened.checkpoints.listed()) if i.shard in touched]
    training = opened.training
    named = [(i, slice_number(i.name, training.slices, training.orders)) for i in doomed]
    digests = {item.name: digest_of(opened, item) for item in doomed}
    states = opened.states()
    for running_ in running:
        case = running_.case
        salt = bytes.fromhex(case.salt)
        known = {(item.shard, item.slice) for item in case.checkpoints}
        for item, number in named:
            if item.shard in case.touched and (item.shard, number) not in known:
                digest = digests[item.name]
                made = receipts.commit_checkpoint(
                    salt, shard=item.shard, slice=number, digest=digest
                )
                case.checkpoints.append(made)
        case.shards = [
            receipts.Shard(
                shard=s.shard,
                resumed_from=0 if case.after == "drop" else s.clean,
                retrained=len(s.missing) if _retrains(opened, case, s.shard) else 0,
            )
            for s in states
            if s.shard in case.touched
        ]
    dropped = [r for r in running if r.case.after == "drop"]
    if dropped:
        _drop(opened, dropped, doomed, advance)
    # what is about to go is written down first: a resumed process cannot read it any more
    for item_ in running:
        advance(item_, "deleted")
    listed = opened.checkpoints.listed()
    opened.checkpoints.dispose([item for item in doomed if item.name in listed])


def _retrains(opened: Opened, case: Case, shard: int) -> bool:
    return case.after == "retrain" and shard not in opened.dropped()


def _drop(
    opened: Opened, running: Sequence[Running], doomed: Sequence[Listed], advance: Advance
) -> None:
    """Retire the touched shards: from now on nothing serves for them nor is trained for them."""
    listed = opened.checkpoints.listed().values()
    touched = {shard for item in running for shard in item.case.touched}
    clean = [i for i in listed if i.shard in touched and i not in doomed]
    for item in running:
        own = [i.name for i in clean if i.shard in item.case.touched]
        item.case.retired = sorted({*item.case.retired, *own})
        advance(item, "deleted")
    with opened.database.transaction():
        dropped = sorted(opened.dropped() | touched)
        opened.database.set_value("dropped shards", json.dumps(dropped).encode())
    opened.checkpoints.dispose([*doomed, *clean])
