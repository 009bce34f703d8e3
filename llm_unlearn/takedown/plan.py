"""What a takedown would do, before it does anything.

Guarantees: planning changes nothing; the plan names every document that would go and why, every
document that only looks alike and is left to people, every document of somebody else that holds the
subject's name, and what retraining will cost. Copies are found in documents that are there (live, fenced
or held), never in a structure that outlives them. Which documents belong to a plan is decided when it is
made; a document ingested after that is not in it (its tombstone refuses it). Many requests are compared
with all documents in one pass.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import NotFound, UnlearnError
from llm_unlearn.exports import Export, Exports, owing_to
from llm_unlearn.opened import Opened
from llm_unlearn.pace import read_pace, read_sizes, work
from llm_unlearn.retrieval.embedding import encode
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.build import ShardState, planned_steps, shard_states
from llm_unlearn.takedown.closure import Candidate, Match, find_copies
from llm_unlearn.takedown.lookup import THERE, Lookup
from llm_unlearn.takedown.overlap import fold
from llm_unlearn.takedown.request import Request
from llm_unlearn.takedown.tombstones import name_runs


@dataclass(frozen=True)
class Planned:
    """One document in a plan: the record, what it is called, how it was found and how alike it is."""

    record: Record
    id: str
    subject: str
    kind: str  # "requested", a closure kind, or "mention"
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
    """A takedown before it is accepted.

    Attributes:
        removed: what goes.
        flagged: possible paraphrases, left to people.
        mentions: documents of other subjects that hold the subject's name: shown, never removed.
        kept_back: handles of documents that fall under it and that a legal hold keeps.
        held_flagged: possible paraphrases that a legal hold keeps.
        texts: what copies were looked for by, as `Match.text` counts them.
    """

    request: Request
    removed: tuple[Planned, ...]
    flagged: tuple[Planned, ...]
    mentions: tuple[Planned, ...]
    kept_back: tuple[bytes, ...]
    compared: int
    shards: tuple[ShardWork, ...]
    seconds: float | None  # expected time of retraining; None before the first training
    owed: tuple[Export, ...] = ()  # exported adapters that had learned one of these documents
    texts: tuple[str, ...] = ()
    held_flagged: tuple[Planned, ...] = ()
    blind: bool = False  # paraphrases were not looked for: the embedder is not that of the store

    @property
    def held(self) -> int:
        """How many documents are under a legal hold: not used, and kept."""
        return len(self.kept_back)

    @property
    def handles(self) -> list[bytes]:
        """Handles of the documents that go."""
        return [item.record.handle for item in self.removed]

    def __repr__(self) -> str:
        return f"Plan({len(self.removed)} removed, {len(self.flagged)} flagged)"  # never a text


def make_plan(opened: Opened, request: Request, *, include_flagged: bool = False) -> Plan:
    """Find everything that falls under a request.

    Args:
        include_flagged: treat possible paraphrases as copies (a person has looked at them).

    Raises:
        NotFound: the request names a subject, id or source that no document has, or nothing at all
            falls under it.
    """
    found = make_plans(opened, [request], include_flagged=[include_flagged])[0]
    if isinstance(found, NotFound):
        raise found
    return found


def make_plans(
    opened: Opened,
    requests: Sequence[Request],
    *,
    include_flagged: Sequence[bool],
    among: Collection[bytes] | None = None,
) -> list[Plan | NotFound]:
    """Plan many requests in one pass over all documents; for each its plan, or why there is none.

    Args:
        include_flagged: for each request, as for `make_plan`.
        among: copies are looked for among these documents only, by handle.
    """
    present = opened.vault.records(states=THERE)
    by_handle = {record.handle: record for record in present}
    lookup = Lookup.over(present)
    failed: dict[int, NotFound] = {}
    named: dict[int, list[Record]] = {}
    texts: dict[int, list[str]] = {}
    groups: list[int] = []
    wanted: list[str] = []
    rows: list[NDArray[np.float32]] = []
    row_groups: list[int] = []
    blind = False
    for group, request in enumerate(requests):
        try:
            named[group] = lookup.named(opened, request)
        except NotFound as error:
            failed[group] = error
            continue
        kept = [record for record in named[group] if record.fate != "refused"]
        texts[group] = [opened.document(record).content for record in kept]
        vectors = [opened.vectors(record) for record in kept]
        if request.text:
            texts[group].append(request.text)
            try:
                vectors.append(opened.embed(request.text))
            except UnlearnError:
                blind = True  # what needs no embedder is found and removed all the same
        wanted += texts[group]
        groups += [group] * len(texts[group])
        rows += vectors
        row_groups += [group for part in vectors for _ in range(len(part))]
    # what one request names may be a copy of what another names
    only = {r.handle for found in named.values() for r in found} if len(named) == 1 else set()
    others = [r for r in present if r.handle not in only and r.fate != "refused"]
    if among is not None:
        others = [r for r in others if r.handle in among]
    considered = {record.handle for record in others}
    names = {group: requests[group] for group in named}

    def compare(embed: Callable[[Sequence[str]], NDArray[np.float32]] | None) -> Compared:
        speakers, matches = _Names(names), defaultdict[int, list[Match]](list)
        candidates = speakers.listening(opened, others)
        if not wanted:
            deque(candidates, maxlen=0)
            return speakers, matches
        for match in find_copies(
            wanted,
            candidates,
            config=opened.config.takedown,
            request_vectors=np.concatenate(rows) if rows else None,
            groups=groups,
            vector_groups=row_groups,
            embed=embed,
        ):
            matches[match.group].append(match)
        return speakers, matches

    try:
        speakers, matches = compare(partial(_embedded, opened))
    except _CannotEmbed:
        blind = True
        speakers, matches = compare(None)
    first = {group: groups.index(group) for group in set(groups)}
    pace, sizes = read_pace(opened.database), read_sizes(opened.database)
    exported = Exports(opened.database, opened.keyring).all()
    plans: list[Plan | NotFound] = []
    for group, request in enumerate(requests):
        if group in failed:
            plans.append(failed[group])
            continue
        asked = {record.handle for record in named[group]}
        found = [
            replace(m, text=None if m.text is None else m.text - first[group])
            for m in matches[group]
            if m.handle not in asked
        ]
        draft = _draft(opened, request, named[group], found, by_handle, include_flagged[group])
        if not draft.removed and not draft.kept_back:
            plans.append(
                NotFound(
                    "No live document falls under this request.",
                    "Nothing was changed. Check the passage, or name a subject, an id or a source.",
                )
            )
            continue
        gone = set(draft.handles)
        touched = {*asked, *gone, *draft.kept_back}
        mentions = [
            _planned(opened, by_handle[handle], "mention", 1.0)
            for handle in speakers.heard[group]
            if handle not in touched
        ]
        plan = replace(
            draft,
            mentions=tuple(mentions),
            compared=len(others) - len(asked & considered),
            texts=tuple(texts[group]),
            owed=tuple(owing_to({*gone, *draft.kept_back}, exported)),
            blind=blind,
        )
        if len(requests) == 1:
            after = _after(opened, [plan])
            owing = work(after, opened.training, sizes)
            plan = replace(
                plan,
                shards=_works(opened, after),
                seconds=None if pace is None else pace.expected(owing, loaded=opened.models.loaded),
            )
        plans.append(plan)
    return plans


def as_now(opened: Opened, plan: Plan) -> Plan:
    """The plan with what has come under a legal hold since it was made kept back."""
    planned = [item.record.handle for item in (*plan.removed, *plan.flagged)]
    there = opened.vault.find_many(planned)
    held = {handle for handle, record in there.items() if record.state == "held"}
    if not held:
        return plan
    return replace(
        plan,
        removed=tuple(i for i in plan.removed if i.record.handle not in held),
        flagged=tuple(i for i in plan.flagged if i.record.handle not in held),
        kept_back=(*plan.kept_back, *sorted(held.intersection(plan.handles))),
        held_flagged=(
            *plan.held_flagged,
            *(i for i in plan.flagged if i.record.handle in held),
        ),
    )


Compared: TypeAlias = "tuple[_Names, Mapping[int, list[Match]]]"
"""The names that were heard on the way, and the copies by request."""


class _CannotEmbed(Exception):
    """The embedder is not here, or not the one that the store was filled with."""


def _embedded(opened: Opened, texts: Sequence[str]) -> NDArray[np.float32]:
    try:
        embedder = opened.store.embedder
    except UnlearnError as error:
        raise _CannotEmbed from error
    return encode(embedder, list(texts))


def joint_work(opened: Opened, plans: Sequence[Plan]) -> tuple[tuple[ShardWork, ...], float | None]:
    """What retraining several plans at once takes: each shard's share, and the expected seconds."""
    after = _after(opened, plans)
    pace = read_pace(opened.database)
    owed = work(after, opened.training, read_sizes(opened.database))
    seconds = None if pace is None else pace.expected(owed, loaded=opened.models.loaded)
    return _works(opened, after), seconds


def _draft(
    opened: Opened,
    request: Request,
    named: Sequence[Record],
    found: Sequence[Match],
    by_handle: Mapping[bytes, Record],
    include_flagged: bool,
) -> Plan:
    """What goes, what is left to people, and what a hold keeps."""
    removed = [_planned(opened, r, "requested", 1.0) for r in named if r.state != "held"]
    held = [record.handle for record in named if record.state == "held"]
    flagged: list[Planned] = []
    later: list[Planned] = []
    for match in found:
        record = by_handle[match.handle]
        sure = include_flagged or match.kind != "paraphrase"
        if record.state == "held" and sure:
            held.append(record.handle)
            continue
        item = _planned(opened, record, match.kind, match.score, match)
        (removed if sure else later if record.state == "held" else flagged).append(item)
    plan = Plan(request, tuple(removed), tuple(flagged), (), tuple(held), 0, (), None)
    return replace(plan, held_flagged=tuple(later))


class _Names:
    """The names of subjects, listened for while documents pass by."""

    def __init__(self, requests: Mapping[int, Request]) -> None:
        self.heard: dict[int, list[bytes]] = defaultdict(list)
        self._subjects: dict[int, str] = {}
        runs: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for group, request in requests.items():
            for name in (request.subject, *request.names):
                for run in name_runs(name) if name else ():
                    runs[run].add(group)
            if request.subject:
                self._subjects[group] = request.subject
        self._runs = runs
        self._lengths: dict[str, set[int]] = defaultdict(set)  # by first word
        for run in runs:
            self._lengths[run[0]].add(len(run))

    def listening(self, opened: Opened, records: Sequence[Record]) -> Iterator[Candidate]:
        """Each document as a candidate for the closure; its names are noted on the way."""
        own = {g: opened.vault.mark("subject", name) for g, name in self._subjects.items()}
        for record in records:
            document = opened.document(record)
            content = document.content
            for group in self._said(content) if self._runs else ():
                if own.get(group) != record.subject:
                    self.heard[group].append(record.handle)
            turns = tuple(turn.content for turn in document.messages or ())
            yield Candidate(record.handle, content, opened.vectors(record), turns)

    def _said(self, text: str) -> set[int]:
        words = fold(text).words
        found: set[int] = set()
        for at, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                found |= self._runs.get(words[at : at + length], set())
        return found


def _planned(
    opened: Opened, record: Record, kind: str, score: float, match: Match | None = None
) -> Planned:
    entry = opened.ledger.entry(record)
    return Planned(record, entry.id, entry.subject, kind, score, match)


def shards_of(opened: Opened, handles: Collection[bytes]) -> set[int]:
    """The shards in which documents, whatever their state, were or will be trained on."""
    found = opened.vault.find_many(list(handles)).values()
    closed = [r for r in found if r.fate == "corpus" and r.generation < opened.ledger.generation]
    homes = {opened.shard_of(record) for record in closed}
    return {shard for shard in homes if shard is not None}


def _after(opened: Opened, plans: Sequence[Plan]) -> list[ShardState]:
    """The shards that the documents of plans were in, as they would stand without them.

    Documents that are fenced for a request count as they were before it, and those that a plan would
    fence for people to look at as gone. A dropped shard has nothing to be trained again.
    """
    gone = {handle for plan in plans for handle in plan.handles}
    out = set(gone)
    if opened.config.takedown.fence_flagged:
        out |= {item.record.handle for plan in plans for item in plan.flagged}
    after = shard_states(opened.wanted_without(out), opened.checkpoints.listed())
    affected = shards_of(opened, {handle for plan in plans for handle in plan.kept_back})
    affected |= {
        shard
        for shard, parts in opened.wanted_without((), back=gone).items()
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


def _works(opened: Opened, after: Sequence[ShardState]) -> tuple[ShardWork, ...]:
    training = opened.training
    return tuple(
        ShardWork(s.shard, s.clean, len(s.missing), planned_steps(s, training)) for s in after
    )
