"""What a takedown would do, before it does anything.

Guarantees: planning changes nothing; the plan names every document that would go and why, every
document that only looks alike and is left to people, and what retraining will cost. Copies are found in
live documents only, never in a structure that outlives them. Which documents belong to a plan is
decided when it is made; a document ingested after that is not in it (its tombstone refuses it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.exports import Export, Exports
from llm_unlearn.opened import Opened
from llm_unlearn.pace import read_pace, read_sizes, work
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.build import ShardState, planned_steps, shard_states
from llm_unlearn.takedown.closure import Candidate, Match, find_copies
from llm_unlearn.takedown.request import Request


@dataclass(frozen=True)
class Planned:
    """One document in a plan: the record, what it is called, how it was found and how alike it is."""

    record: Record
    id: str
    subject: str
    kind: str  # "requested", or a closure kind
    score: float
    match: Match | None = None


@dataclass(frozen=True)
class ShardWork:
    """What one shard owes: slices it keeps, slices it trains again, optimizer steps they take."""

    shard: int
    kept: int
    retrained: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """A takedown before it is accepted."""

    request: Request
    removed: tuple[Planned, ...]
    flagged: tuple[Planned, ...]
    held: int  # named, but under a legal hold: not used, and kept
    compared: int
    shards: tuple[ShardWork, ...]
    seconds: float | None  # expected time of retraining; None before the first training
    owed: tuple[Export, ...] = ()  # exported adapters that had learned one of these documents

    @property
    def handles(self) -> list[bytes]:
        """Handles of the documents that go."""
        return [item.record.handle for item in self.removed]


def make_plan(opened: Opened, request: Request, *, include_flagged: bool = False) -> Plan:
    """Find everything that falls under a request.

    Args:
        include_flagged: treat possible paraphrases as copies (a person has looked at them).

    Raises:
        NotFound: the request names a subject, id or source that no live document has.
        InputError: the request names nothing at all.
    """
    present = opened.vault.records(states=("live", "held"))
    live = [record for record in present if record.state == "live"]
    asked = _named(opened, request, present)
    named = [record for record in asked if record.state == "live"]
    handles = {record.handle for record in asked}
    held = [record for record in asked if record.state == "held"]
    texts = [opened.document(r).content for r in named if r.fate != "refused"]
    if request.text:
        texts.append(request.text)
    texts += [opened.document(r).content for r in held if r.fate != "refused"]
    requested = [_planned(opened, record, "requested", 1.0) for record in named]
    others = [r for r in live if r.handle not in handles and r.fate != "refused"]
    matches = (
        find_copies(
            texts,
            _candidates(opened, others),
            config=opened.config.takedown,
            request_vectors=_vectors(opened, asked, request),
        )
        if texts
        else []
    )
    by_handle = {record.handle: record for record in others}
    found = [_planned(opened, by_handle[m.handle], m.kind, m.score, m) for m in matches]
    sure = [item for item in found if include_flagged or item.kind != "paraphrase"]
    flagged = [] if include_flagged else [item for item in found if item.kind == "paraphrase"]
    removed = [*requested, *sure]
    if not removed and not held:
        raise NotFound(
            "No live document falls under this request.",
            "Nothing was changed. Check the passage, or name a subject, an id or a source.",
        )
    gone = {item.record.handle for item in removed}
    after = _after(opened, gone)
    return Plan(
        request=request,
        removed=tuple(removed),
        flagged=tuple(flagged),
        held=len(held),
        compared=len(others),
        shards=tuple(
            ShardWork(s.shard, s.clean, len(s.missing), planned_steps(s, opened.training))
            for s in after
        ),
        seconds=_seconds(opened, after),
        owed=tuple(Exports(opened.database, opened.keyring).owed(gone)),
    )


def _named(opened: Opened, request: Request, present: Sequence[Record]) -> list[Record]:
    mark = opened.vault.mark
    chosen: dict[bytes, Record] = {}
    if request.subject:
        found = [r for r in present if r.subject == mark("subject", request.subject)]
        if not found:
            raise NotFound(
                f"No live document has the subject {request.subject!r}.",
                "Look at the ids and subjects in your own records; this workspace lists none in clear.",
            )
        chosen |= {r.handle: r for r in found}
    for name in request.ids:
        handle = mark("id", name)
        match = [r for r in present if r.handle == handle]
        if not match:
            raise NotFound(f"No live document has the id {name!r}.", "Nothing was changed.")
        chosen |= {handle: match[0]}
    if request.source:
        found = [r for r in present if r.source == mark("source", request.source)]
        if not found:
            raise NotFound(
                f"No live document has the source {request.source!r}.", "Nothing was changed."
            )
        chosen |= {r.handle: r for r in found}
    if not chosen and not request.text:
        raise InputError(
            "The request names nothing to remove.", "Give a subject, an id, a source or a text."
        )
    return [chosen[handle] for handle in sorted(chosen)]


def _planned(
    opened: Opened, record: Record, kind: str, score: float, match: Match | None = None
) -> Planned:
    entry = opened.ledger.entry(record)
    return Planned(record, entry.id, entry.subject, kind, score, match)


def _candidates(opened: Opened, records: Sequence[Record]) -> Iterator[Candidate]:
    for record in records:
        document: Document = opened.document(record)
        rows = opened.vectors(record)
        yield Candidate(record.handle, document.content, rows)


def _vectors(
    opened: Opened, named: Sequence[Record], request: Request
) -> NDArray[np.float32] | None:
    """The vectors (rows, dim) of everything the request names; None when it names no text."""
    rows = [opened.vectors(record) for record in named if record.fate != "refused"]
    if request.text:
        rows.append(opened.embed(request.text))
    return np.concatenate(rows) if rows else None


def _after(opened: Opened, gone: set[bytes]) -> list[ShardState]:
    """The shards that these documents were in, as they would stand without them.

    A dropped shard has nothing to be trained again.
    """
    after = shard_states(opened.wanted_without(gone), opened.checkpoints.listed())
    affected = {
        shard
        for shard, parts in opened.wanted().items()
        for part in parts
        for record in part.records
        if record.handle in gone
    }
    dropped = opened.dropped()
    return [
        replace(state, lanes=()) if state.shard in dropped else state
        for state in after
        if state.shard in affected
    ]


def _seconds(opened: Opened, after: Sequence[ShardState]) -> float | None:
    pace = read_pace(opened.database)
    if pace is None:
        return None
    owed = work(after, opened.training, read_sizes(opened.database))
    return pace.expected(owed, loaded=opened.models.loaded)
