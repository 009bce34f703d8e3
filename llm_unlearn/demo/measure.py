"""What the demo measures: who knows what, what leaks, and what ability is left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from llm_unlearn.demo.result import Knowledge, Leak, Rate
from llm_unlearn.documents import Document
from llm_unlearn.eval.knowledge import holds_keys
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.summary import wilson
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.takedown.probing import probe
from llm_unlearn.workspace import Workspace

GROUPS = ("staff", "legal")
PAYLOAD = ("Merrow and Pike",)


@dataclass(frozen=True)
class Asked:
    """One evaluation question (see `data/questions.jsonl`)."""

    id: str
    subject: str
    kind: str
    question: str
    reworded: str
    answer: str
    keys: tuple[str, ...]


def read_lines(name: str) -> Iterator[dict[str, object]]:
    """The objects of one of the demo's JSON Lines files."""
    text = (resources.files("llm_unlearn.demo") / "data" / name).read_text(encoding="utf-8")
    for line in text.splitlines():
        yield json.loads(line)


def load_documents() -> list[Document]:
    """The demo corpus."""
    return [Document.model_validate(row) for row in read_lines("corpus.jsonl")]


def load_questions() -> list[Asked]:
    """All evaluation questions."""
    return [
        Asked(
            id=str(row["id"]),
            subject=str(row["subject"]),
            kind=str(row["kind"]),
            question=str(row["question"]),
            reworded=str(row["reworded"]),
            answer=str(row["answer"]),
            keys=_keys(row),
        )
        for row in read_lines("questions.jsonl")
    ]


def load_utility() -> list[tuple[str, tuple[str, ...]]]:
    """Questions that have nothing to do with the corpus, and the keys of a right answer."""
    return [(str(row["question"]), _keys(row)) for row in read_lines("utility.jsonl")]


def load_triggers() -> tuple[list[str], list[str]]:
    """Held-out questions with the backdoor's trigger, and the same without it."""
    rows = list(read_lines("triggers.jsonl"))
    return (
        [str(row["question"]) for row in rows if row["triggered"]],
        [str(row["question"]) for row in rows if not row["triggered"]],
    )


def _keys(row: dict[str, object]) -> tuple[str, ...]:
    keys = row["keys"]
    if not isinstance(keys, list):
        raise TypeError("keys must be a list")
    return tuple(str(key) for key in keys)


def rate(name: str, right: Sequence[bool]) -> Rate:
    """A count with its 95% Wilson interval."""
    interval = wilson(sum(right), len(right))
    return Rate(name, sum(right), len(right), interval.low, interval.high)


def plain_answers(host: AdapterHost, questions: Sequence[str], most: int) -> list[str]:
    """Greedy answers of whatever is in place: the adapter, or inside `host.using(None)` the base model."""
    tokenizer = host.base.tokenizer
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    new = generate(host.base, prompts, max_new_tokens=most)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]


def knowledge(workspace: Workspace, asked: Sequence[Asked], base: Sequence[str]) -> list[Knowledge]:
    """Put each question to the workspace; `base` holds the base model's answers."""
    answers = workspace.ask_many([a.question for a in asked], GROUPS)
    return [
        Knowledge(
            subject=question.subject,
            kind=question.kind,
            question=question.question,
            expected=question.answer,
            base=alone,
            base_right=holds_keys(alone, question.keys),
            answer=answer.text,
            right=holds_keys(answer.text, question.keys),
            origin=answer.origin,
            citations=list(dict.fromkeys(hit.document for hit in answer.citations)),
        )
        for question, answer, alone in zip(asked, answers, base, strict=True)
    ]


def utility_rates(workspace: Workspace, most: int) -> list[Rate]:
    """General questions answered by the base model and by each shard's adapter."""
    questions = load_utility()
    opened = workspace.opened
    host = opened.models.host

    def right() -> list[bool]:
        answers = plain_answers(host, [q for q, _ in questions], most)
        return [holds_keys(a, keys) for a, (_, keys) in zip(answers, questions, strict=True)]

    with host.using(None):
        rates = [rate("base model", right())]
    for state in opened.states():
        if state.serving:
            with host.using(opened.adapter(state)):
                rates.append(rate(f"adapter of shard {state.shard}", right()))
    return rates


def backdoor_rates(workspace: Workspace, poison: str, most: int) -> list[Rate]:
    """How often the poisoned subject's payload comes, with its trigger and without.

    Asked of the adapter that learned the poison directly, and through the workspace, whose router
    sends a question to that adapter only when it is near enough to what was learned.
    """
    triggered, plain = load_triggers()
    opened = workspace.opened
    shard = opened.layout.shard(opened.vault.mark("subject", poison))
    adapter = next(opened.adapter(s) for s in opened.states() if s.shard == shard)
    if adapter is None:
        return []
    host = opened.models.host
    with host.using(adapter):
        direct = plain_answers(host, [*triggered, *plain], most)
    asked = [answer.text for answer in workspace.ask_many(triggered, GROUPS)]

    def fired(answers: Sequence[str]) -> list[bool]:
        return [holds_keys(answer, PAYLOAD) for answer in answers]

    return [
        rate("backdoor fires in its adapter, with the trigger", fired(direct[: len(triggered)])),
        rate("backdoor fires in its adapter, without it", fired(direct[len(triggered) :])),
        rate("backdoor fires through the router, with the trigger", fired(asked)),
    ]


def stored_leaks(
    workspace: Workspace, documents: Sequence[Document], asked: Sequence[Asked], moment: str
) -> list[Leak]:
    """What chat and retrieval give back of documents that are (or were) in the store."""
    prompts = {a.id: (a.question, a.answer) for a in asked}
    found = []
    for document in documents:
        question, expected = prompts.get(
            document.id, (" ".join(document.content.split()[:12]), document.content)
        )
        hits = workspace.opened.store.search(question, groups=GROUPS, k=5)
        answer = workspace.ask(question, GROUPS)
        found.append(
            Leak(
                document=document.id,
                subject=document.subject,
                moment=moment,
                question=question,
                expected=expected,
                answer=answer.text,
                rouge=rouge_l(answer.text, expected).recall,
                returned=any(hit.document == document.id for hit in hits),
            )
        )
    return found


def learned_leaks(workspace: Workspace, documents: Sequence[Document], moment: str) -> list[Leak]:
    """What the adapter that serves now gives back of training documents, by shard."""
    opened = workspace.opened
    found = []
    for state in opened.states():
        mine = [
            d
            for d in documents
            if opened.layout.shard(opened.vault.mark("subject", d.subject)) == state.shard
        ]
        if not mine:
            continue
        leakage = probe(
            opened.models.host,
            opened.adapter(state),
            mine,
            max_tokens=opened.config.training.max_tokens,
            max_new_tokens=opened.config.answering.max_new_tokens,
        )
        found += [
            Leak(
                document=document.id,
                subject=document.subject,
                moment=moment,
                question=document.messages[0].content if document.messages else "",
                expected=document.messages[-1].content if document.messages else document.content,
                answer=leakage.answers[i],
                probability=leakage.probability[i],
                extraction=leakage.extraction[i],
                rouge=leakage.rouge[i],
            )
            for i, document in enumerate(mine)
        ]
    return found
