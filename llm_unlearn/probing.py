"""What can still be pulled out of a workspace about one subject: a report beside never-had.

Guarantees: the workspace is only read; every text is asked of the adapter that serves where the
subject has its place, of the base model alone, and of the same place in a never-had workspace if
one is given, in the same batches, so that equal weights give equal values; where the placement rules
give the subject no place, no weights are asked and the report says so; every text is also asked
of the store and of the chat, as a caller in the given groups. The texts come from the workspace
while the subject is live, and otherwise from whoever asks: a takedown leaves none to read.

It does not build never-had: that is a workspace with the same config and secrets and the other
documents. Without it nothing is called forgotten.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm_unlearn.config import Config
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.eval import cards, chat
from llm_unlearn.eval.cards import Card, Curve, Level, Report, Side
from llm_unlearn.eval.router import Routing
from llm_unlearn.models.lora import AdapterState
from llm_unlearn.probing_weights import TITLES, Asked, Gave, membership, text_of
from llm_unlearn.retrieval.embedding import encode
from llm_unlearn.routing import nearest, permitted
from llm_unlearn.separation import decide
from llm_unlearn.sisa.declared import agree, declared, of_subject
from llm_unlearn.sisa.layout import Declared
from llm_unlearn.takedown.scanning import look_for
from llm_unlearn.workspace import Workspace

NOTES = (
    "Intervals are 95% and speak of other texts like these, not of another training run, seed or model.",
    "Teacher-forced values (probability, extraction strength, marks) give the model the true words "
    "before each one; free decoding gives back at most as much.",
    "Other prompts and attacks than those asked here may bring out more.",
    "What the base model learned in its own pretraining is in the column of the base model, and no "
    "takedown changes it.",
)
_NO_PLACE = (
    "The weights were not asked: by the placement rules of this workspace none of the texts has a place "
    "in any shard, so there is no adapter of theirs to ask."
)


def probe_subject(
    workspace: Workspace,
    subject: str,
    documents: Sequence[Document] | None = None,
    *,
    controls: Sequence[Document] = (),
    never_had: Workspace | None = None,
    groups: Collection[str] = (),
    deep: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Report:
    """Ask everything about one subject.

    Args:
        documents: its texts; by default its live documents in the workspace.
        controls: texts like them that were never taken in, for membership.
        never_had: a workspace with the same models, built without the subject.
        groups: who asks the store and the chat; by default the default group.
        deep: also other wordings, rounding to 4 bits, the layers, and the embedding attack.

    Raises:
        NotFound: the subject is not live and no texts were given.
        InputError: none of the texts is of the subject, or they declare two places; never-had has
            another model, or no place for them.
    """
    opened = workspace.opened
    mark = opened.vault.mark("subject", subject)
    records = [r for r in opened.vault.records() if r.subject == mark and r.state == "live"]
    if documents is None:
        if not records:
            raise NotFound(
                f"Nothing of the subject {subject!r} is live in {workspace.path}.",
                "Give its texts again: --texts FILE.",
            )
        documents = [opened.document(r) for r in records]
    documents = sorted((d for d in documents if d.subject == subject), key=lambda d: d.id)
    if not documents:
        raise InputError(
            f"None of the texts has the subject {subject!r}.", "Name it in their `subject` field."
        )
    sides: dict[Side, AdapterState | None] = {}
    place = _place(workspace, documents, subject)
    if place is not None:
        sides["now"] = _serving(workspace, place)
    if never_had is not None:
        other = never_had.opened
        if (other.config.model, other.training.top_layers, other.training.lora_rank) != (
            opened.config.model,
            opened.training.top_layers,
            opened.training.lora_rank,
        ):
            raise InputError(
                f"{never_had.path} has another model or adapter shape than {workspace.path}.",
                "Build never-had from the same config.",
            )
        there = other.vault.mark("subject", subject)
        if any(r.subject == there and r.state == "live" for r in other.vault.records()):
            raise InputError(
                f"{never_had.path} has documents of {subject!r}.", "Build it without them."
            )
        if place is not None:
            beside = _place(never_had, documents, subject)
            if beside is None:
                raise InputError(
                    f"{never_had.path} has no place for these texts, {workspace.path} has one.",
                    "Build never-had from the same config.",
                )
            sides["never had"] = _serving(never_had, beside)
    max_tokens = opened.training.max_tokens
    asked = Asked(opened.models.host, documents, controls, max_tokens, deep, told)
    notes = [*NOTES, *asked.notes(weighed=place is not None)]
    made: list[Card] = []
    found: dict[Side, Gave] = {}
    curves: list[Curve] = []
    if place is None:
        notes.append(_NO_PLACE)
    else:
        sides["base"] = None
        found = {side: asked.ask(side, adapter) for side, adapter in sides.items()}
        made += [
            cards.compared(
                name, *TITLES[name], "weights", {s: found[s].values[name] for s in found}
            )
            for name in found["now"].values
        ]
        if controls:
            more, curves = membership(asked, found)
            made += more
        else:
            notes.append("Membership was not asked: no control texts were given.")
    told("store and chat")
    callers = set(groups) or {opened.config.retrieval.default_group}
    made += _stored(workspace, documents, callers, deep)
    made.append(_routed(workspace, never_had, documents, callers))
    if not records:
        told("files")
        made.append(_files(workspace, documents, asked))
    return Report(
        toolkit=importlib.metadata.version("llm-unlearn"),
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        subject=subject,
        model=opened.config.model,
        live=bool(records),
        texts=tuple(d.id for d in documents),
        sides=tuple(sides) or (("now",) if never_had is None else ("now", "never had")),
        cards=tuple(made),
        passages=tuple(asked.passages(found)) if found else (),
        curves=tuple(curves),
        notes=tuple(notes),
    )


def _place(workspace: Workspace, documents: Sequence[Document], subject: str) -> int | None:
    """The shard where the subject has its place, or would have; None if the rules give it none.

    By what its training documents declare, while some are here; else by what those of the given ones
    declare that the policy would train on, or, if it would on none, any that could have a place.

    Raises:
        InputError: they declare two places.
    """
    opened = workspace.opened
    placement, mark = opened.training.placement, opened.vault.mark("subject", subject)
    if not placement.asks:
        return opened.layout.shard(mark)
    here = of_subject(opened.vault, subject, placement)
    if here is not None:
        return opened.layout.shard(mark, here[0])
    said: list[tuple[Document, Declared]] = []
    for document in documents:
        try:
            said.append((document, declared(document, placement)))
        except InputError:
            continue  # by these rules it has no place in any shard
    policy, own = opened.config.separation, placement.own_shards
    trained = [s for s in said if decide(s[0], policy, own_shards=own).fate == "corpus"]
    said = trained or said
    if not said:
        return None
    first, place = said[0]
    shard = opened.layout.shard(mark, place)
    for document, other in said[1:]:
        if opened.layout.shard(mark, other) != shard:
            agree(place, other, first.id, document.id, subject)
    return shard


def _serving(workspace: Workspace, shard: int) -> AdapterState | None:
    """The adapter that serves for a shard; None where the base model answers alone."""
    opened = workspace.opened
    return next((opened.adapter(s) for s in opened.states() if s.shard == shard), None)


def _stored(
    workspace: Workspace, documents: Sequence[Document], groups: Collection[str], deep: bool
) -> list[Card]:
    """What a caller in these groups, and one in none that exists, gets of each text."""
    wanted = [chat.Passage(d.id, text_of(d)) for d in documents]
    questions = _questions(documents)
    search, answer = searching(workspace), answering(workspace)
    who = ", ".join(sorted(groups))
    returned = (chat.returned(search, wanted, groups).rank > 0).tolist()
    replies = [answer(q, groups) for q in questions]
    pairs = list(zip(questions, wanted, strict=True))
    cited = (chat.cited(answer, pairs, groups).rank > 0).tolist()
    outsider = [f"nobody-{workspace.opened.vault.mark('id', 'outsider').hex()[:12]}"]
    crossed = [bool(search(w.text, outsider)) for w in wanted]
    rows: list[tuple[str, str, str, list[bool]]] = [
        ("returned", "Returned by search", f"A search with the text itself, as {who}.", returned),
        ("cited", "Cited in answers", f"A question about it, asked as {who}.", cited),
        (
            "said",
            "Quoted in answers",
            f"An answer to that question holds {chat.LEAST} characters of it in a row; phrases that other "
            "documents share count too.",
            [chat.run_share(r.text, w.text) > 0 for r, w in zip(replies, wanted, strict=True)],
        ),
        (
            "outsider",
            "Returned to an outsider",
            "The same search by a caller in a group that nothing belongs to.",
            crossed,
        ),
    ]
    if deep:
        dumped = chat.dump_context(answer, pairs, groups)
        about = "Five prompts that ask for the context instead of an answer bring it out verbatim."
        rows.append(("dumped", "Context dumped", about, (dumped.worst > 0).tolist()))
    return [
        cards.counted(name, title, about, "store", {"now": hits})
        for name, title, about, hits in rows
    ]


def _questions(documents: Sequence[Document]) -> list[str]:
    return [
        d.messages[-2].content if len(d.messages) > 1 else f"What is known about {d.subject}?"
        for d in documents
    ]


def _routed(
    workspace: Workspace,
    never_had: Workspace | None,
    documents: Sequence[Document],
    groups: Collection[str],
) -> Card:
    """Which questions reach an adapter, now and where the subject never was."""
    sides: dict[Side, Workspace] = {"now": workspace}
    if never_had is not None:
        sides["never had"] = never_had
    questions = _questions(documents)
    reached = {}
    for side, asked in sides.items():
        route = routing(asked, groups)
        reached[side] = [float(route(q)[1] is not None) for q in questions]
    return cards.compared(
        "routed",
        "Answered by an adapter",
        "A question about it reaches an adapter, its own or that of the nearest stranger.",
        "store",
        reached,
    )


def routing(workspace: Workspace, groups: Collection[str]) -> Routing:
    """The workspace's router as `eval.router` asks it: what the chat would do with a question."""
    opened, answerer = workspace.opened, workspace.answerer

    def route(question: str) -> tuple[float, int | None]:
        vector = encode(opened.store.embedder, [question])[0]
        now = answerer.stand()
        shards = permitted(now, opened.layout.required_groups, groups, answerer.default_group)
        near = nearest(opened.router, vector, now, shards, 1)
        [choice] = answerer.choose([question], [vector], groups)
        shard = choice.experts[0][0] if choice.experts else None
        return (near[0][0] if near else -1.0), shard

    return route


def searching(workspace: Workspace) -> chat.Searching:
    """The workspace's store as the probes of `eval.chat` ask it."""

    def search(query: str, groups: Collection[str]) -> list[chat.Passage]:
        hits = workspace.opened.store.search(query, groups=groups)
        return [chat.Passage(hit.document, hit.text) for hit in hits]

    return search


def answering(workspace: Workspace) -> chat.Answering:
    """The workspace's chat as the probes of `eval.chat` ask it."""

    def answer(question: str, groups: Collection[str]) -> chat.Reply:
        found = workspace.ask(question, groups)
        cited = tuple(chat.Passage(hit.document, hit.text) for hit in found.citations)
        return chat.Reply(found.text, cited)

    return answer


def _files(workspace: Workspace, documents: Sequence[Document], asked: Asked) -> Card:
    """Whether any file of the workspace or of its keys holds a text or its tokens.

    Clean only if all files were looked into, for all texts.
    """
    needles, found = look_for(
        workspace.opened, documents=documents, tokens=[t.encoded.ids for t in asked.texts]
    )
    size = f"{found.files} files, {found.bytes:,} bytes"
    gaps = []
    if found.unsearched:
        gaps.append(f"{len(found.unsearched)} files or streams could not be looked into")
    if needles.unsearchable:
        gaps.append(f"{len(needles.unsearchable)} texts or token lists are too short to look for")
    if needles.dropped:
        gaps.append(
            f"{needles.dropped} of {needles.dropped + needles.fragments} fragments were not looked for: "
            "documents that stay hold them too, or they prove nothing"
        )
    level: Level = "clean"
    if found.findings:
        level, verdict = "leaks", f"Found {len(found.findings)} times in {size}"
    else:
        verdict = f"Not found in {size}"
        if found.unsearched or needles.unsearchable or (needles.dropped and not needles.fragments):
            level = "unclear"
    return Card(
        name="files",
        title="Left in files",
        about="Files searched for the texts in every encoding, and for their token ids.",
        group="files",
        sides={},
        values={},
        level=level,
        verdict="; ".join([verdict, *gaps]) + ".",
    )


@contextmanager
def open_beside(workspace: Workspace, path: Path, keys: Path | None) -> Iterator[Workspace]:
    """Open another workspace for reading, with the first one's models where both name the same."""

    def names(config: Config) -> tuple[object, ...]:
        training = config.training
        shape = (training.lora_rank, training.lora_alpha, training.top_layers, training.dtype)
        return config.model, config.embedder, shape

    with Workspace.open(path, keys=keys, readonly=True) as other:
        same = names(other.config) == names(workspace.config)
    models = workspace.opened.models if same else None
    with Workspace.open(path, keys=keys, models=models, readonly=True) as other:
        yield other
