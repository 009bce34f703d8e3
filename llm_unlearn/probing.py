"""What can still be pulled out of a workspace about one subject: a report beside never-had.

Guarantees: the workspace is only read; every text is asked of the adapter that serves where the
subject has its place, of the base model alone, and of the same place in a never-had workspace if
one is given, in the same batches, so that equal weights give equal values; every text is also asked
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
from typing import Any

from llm_unlearn.config import Config
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.eval import cards, chat
from llm_unlearn.eval.cards import Card, Curve, Report, Side
from llm_unlearn.eval.membership import attack, blind_scores, one_pass_scores, roc
from llm_unlearn.eval.router import Routing
from llm_unlearn.models.lora import AdapterState
from llm_unlearn.probing_weights import TITLES, Asked, Gave, text_of
from llm_unlearn.retrieval.embedding import encode
from llm_unlearn.routing import nearest, permitted
from llm_unlearn.sisa.declared import declared
from llm_unlearn.takedown.scanning import scan_for
from llm_unlearn.workspace import Workspace

NOTES = (
    "Intervals are 95% and speak of other texts like these, not of another training run, seed or model.",
    "Teacher-forced values (probability, extraction strength, marks) give the model the true words "
    "before each one; free decoding gives back at most as much.",
    "Other prompts and attacks than those asked here may bring out more.",
    "What the base model learned in its own pretraining is in the column of the base model, and no "
    "takedown changes it.",
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
        InputError: none of the texts is of the subject; never-had has another model.
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
    host = opened.models.host
    sides: dict[Side, AdapterState | None] = {
        "now": _adapter(workspace, documents[0], mark),
        "base": None,
    }
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
        sides = {
            "now": sides["now"],
            "never had": _adapter(never_had, documents[0], there),
            "base": None,
        }
    asked = Asked(
        host,
        documents,
        controls,
        opened.training.max_tokens,
        opened.config.answering.max_new_tokens,
        deep,
        told,
    )
    found = {side: asked.ask(side, adapter) for side, adapter in sides.items()}
    made = [
        cards.compared(name, *TITLES[name], "weights", {s: found[s].values[name] for s in found})
        for name in found["now"].values
    ]
    notes = list(NOTES)
    curves: list[Curve] = []
    if controls:
        more, curves = _membership(documents, controls, found)
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
        sides=tuple(sides),
        cards=tuple(made),
        passages=tuple(asked.passages(found)),
        curves=tuple(curves),
        notes=tuple(notes),
    )


def _adapter(workspace: Workspace, document: Document, mark: bytes) -> AdapterState | None:
    """The adapter that serves where the subject has, or would have, its place; None for the base."""
    opened = workspace.opened
    placement = opened.training.placement
    shard = opened.layout.shard(mark)
    if placement.asks:
        try:
            shard = opened.layout.shard(mark, declared(document, placement))
        except InputError:
            return None  # by these rules it has no place in any shard
    return next((opened.adapter(s) for s in opened.states() if s.shard == shard), None)


def _membership(
    documents: Sequence[Document], controls: Sequence[Document], found: dict[Side, Gave]
) -> tuple[list[Card], list[Curve]]:
    """AUC of each one-pass score on each side, and of the words alone."""
    mine, theirs = [text_of(d) for d in documents], [text_of(d) for d in controls]
    made: dict[str, dict[Side, Any]] = {}
    curves: list[Curve] = []
    for side, one in found.items():
        members, others = one_pass_scores(one.scores, mine), one_pass_scores(one.controls, theirs)
        for name in members:
            made.setdefault(name, {})[side] = attack(members[name], others[name])
            if side != "base" and name in ("loss", "min_k_plus"):
                curves.append(_curve(name, side, members[name], others[name], made[name][side]))
    folds = min(5, len(mine), len(theirs))
    if folds > 1:
        a, b = blind_scores(mine, theirs, folds=folds)
        curves.append(_curve("words alone, no model", "now", a, b, attack(a, b), blind=True))
    result = []
    for name, by_side in made.items():
        now, other = by_side["now"].auc, by_side.get("never had", by_side["base"]).auc
        whose = "never-had" if "never had" in by_side else "the base model"
        gap = abs(now.mean - other.mean)
        apart = now.low > other.high or now.high < other.low
        result.append(
            Card(
                name=f"membership {name}",
                title=f"Membership by {name.replace('_', '-')}",
                about="Chance that a text of the subject scores above a control text; 0.5 is a coin.",
                group="membership",
                sides={s: cards.Value.of(a.auc) for s, a in by_side.items()},
                values={},
                level="leaks" if apart else "same" if gap == 0 else "level",
                verdict=f"{gap:.3f} from {whose}"
                + (", outside its interval." if apart else "; the intervals meet."),
            )
        )
    return result, curves


def _curve(
    name: str, side: Side, members: Any, others: Any, found: Any, *, blind: bool = False
) -> Curve:
    false, true = roc(members, others)
    points = tuple(zip(map(float, false), map(float, true), strict=True))
    return Curve(name=name, side=side, auc=cards.Value.of(found.auc), points=points, blind=blind)


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
    """Whether any file of the workspace or of its keys holds a text or its tokens."""
    scan = scan_for(
        workspace.opened,
        documents=documents,
        tokens=[e.ids for e in asked.encoded],
        vectors=[],
        keys=[],
    )
    held = scan.findings
    about = f"{scan.files} files searched for the texts in every encoding, and for their token ids."
    return cards.counted("files", "Left in files", about, "files", {"now": [bool(held)]})


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
