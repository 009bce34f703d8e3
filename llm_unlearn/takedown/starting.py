"""What an approved request reaches on the day that it is carried out.

Guarantees: documents are destroyed only as they were planned: what has gone is not counted, what a legal
hold keeps by now is barred and kept, a new text under an old id is left alone; and the case counts what is
true. `keep_held` looks once more right before the keys go. A case that an earlier version approved knows no
contents: its ids are taken at their word.
"""

from __future__ import annotations

from llm_unlearn.opened import Opened
from llm_unlearn.retrieval import bars
from llm_unlearn.takedown.journal import Case, Filed, Journal
from llm_unlearn.takedown.plan import shards_of

_GONE = (
    "That this request removed all that was found for it: {} documents had gone, or had been replaced, "
    "before this request was carried out."
)
_RELEASED = (
    "That nothing else was removed: {} documents that a legal hold had kept were destroyed when it ended, "
    "before this request was carried out."
)


def keep_held(opened: Opened, filed: Filed, case: Case) -> int:
    """Take out of a case what a legal hold keeps by now, and bar it; how many. Inside a transaction."""
    found = opened.vault.find_many([bytes.fromhex(handle) for handle in case.handles])
    held = {handle.hex(): record for handle, record in found.items() if record.state == "held"}
    if not held:
        return 0
    contents = case.contents or [""] * len(case.handles)
    left = [pair for pair in zip(case.handles, contents, strict=True) if pair[0] not in held]
    fates = [record.fate for record in held.values()]
    case.store_count -= fates.count("store")
    case.corpus_count -= fates.count("corpus")
    case.held += len(held)
    case.kept = [*case.kept, *held]
    case.handles = [handle for handle, _ in left]
    case.contents = [content for _, content in left] if case.contents else []
    handles = [bytes.fromhex(handle) for handle in held]
    case.touched = sorted({*case.touched, *shards_of(opened, handles)})
    bars.add(opened.database, handles, filed.mark)
    return len(held)


def start(opened: Opened, journal: Journal, filed: Filed) -> Filed:
    """Look at an approved case's documents once more and start it. Inside a transaction."""
    case = journal.case(filed)
    planned = dict(zip(case.handles, case.contents, strict=True)) if case.contents else {}
    found = opened.vault.find_many([bytes.fromhex(handle) for handle in case.handles])
    same = {
        handle: record
        for handle, record in found.items()
        if planned.get(handle.hex(), record.content.hex()) == record.content.hex()
    }
    if case.kept:
        there = opened.vault.find_many([bytes.fromhex(handle) for handle in case.kept])
        case.held = sum(record.state == "held" for record in there.values())
        ended = len(case.kept) - len(there)
        case.notes += [_RELEASED.format(ended)] if ended else []
    lost = len(case.handles) - len(same)
    case.notes += [_GONE.format(lost)] if lost else []
    fates = [record.fate for record in same.values()]
    case.store_count, case.corpus_count = fates.count("store"), fates.count("corpus")
    case.handles = [handle.hex() for handle in same]
    case.contents = [record.content.hex() for record in same.values()]
    keep_held(opened, filed, case)
    opened.vault.set_state([bytes.fromhex(handle) for handle in case.handles], "fenced")
    return journal.advance(filed, "fenced", case)
