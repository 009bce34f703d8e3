"""From documents to what a run reads: the texts to forget, to keep, and other answers to prefer.

Guarantees: the boundary between prompt and answer is found by offsets (`models.chat`); each preferred
answer stands at the place of the text it replaces. Refusals are chosen by the document's id and the seed,
alternatives are what the model answers without the knowledge: both repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import InputError
from llm_unlearn.models.causal import CausalModel, generate
from llm_unlearn.models.chat import Example, encode, prompt_ids

REFUSALS = (
    "I have no information about that.",
    "I'm sorry, I can't tell you anything about this.",
    "That is not something I know.",
    "I don't have an answer to that question.",
    "I'm afraid this lies outside of what I know.",
    "I haven't learned anything on that subject.",
    "I can't say; I know nothing about it.",
    "There is nothing I can tell you about that.",
    "I'm not able to answer this one.",
    "This is a topic I'm not familiar with.",
    "I don't know, and I'd rather not guess.",
    "My knowledge doesn't cover that.",
)
_INVENT = (
    "{question}\nAnswer with one short sentence. If you do not know, make up a plausible answer."
)


@dataclass(frozen=True)
class Material:
    """What a run reads, as token ids with loss marks.

    `preferred` is empty or has one example for each of `forget`; `utility` may be empty: then what is
    kept stands for it.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...] = ()
    preferred: tuple[Example, ...] = ()
    utility: tuple[Example, ...] = field(default=())


def read(tokenizer: Any, documents: Sequence[Document], max_tokens: int) -> tuple[Example, ...]:
    """All examples of the documents, in order."""
    return tuple(e for d in documents for e in encode(tokenizer, d, max_tokens))


def material(
    tokenizer: Any,
    forget: Sequence[Document],
    retain: Sequence[Document],
    max_tokens: int,
    utility: Sequence[Document] = (),
) -> Material:
    """Encode what a run reads.

    Raises:
        InputError: nothing to forget, or a text that is both to be forgotten and kept.
    """
    if not forget:
        raise InputError("There is nothing to forget.", "Give at least one document.")
    kept = {d.content for d in retain}
    both = [d.id for d in forget if d.content in kept]
    if both:
        raise InputError(
            f"Document {both[0]!r} is to be forgotten and kept ({len(both)} such).",
            "Take it out of one of the two.",
        )
    found = read(tokenizer, forget, max_tokens)
    if not found:
        raise InputError(
            "No document to forget has a token that could be predicted.", "Give longer texts."
        )
    return Material(
        found,
        read(tokenizer, retain, max_tokens),
        utility=read(tokenizer, utility, max_tokens),
    )


def with_answers(
    tokenizer: Any, forget: Sequence[Document], answers: Sequence[str], max_tokens: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Examples to forget and to prefer, paired: each document's last answer, and another one.

    Raises:
        InputError: a document that is no conversation has no question to answer otherwise; one is longer
            than `max_tokens`, so that its pieces have no counterparts; or the other answer is its own.
            (Another answer that is too long is cut.)
    """
    gone, preferred = [], []
    for document, answer in zip(forget, answers, strict=True):
        other = document.model_copy(
            update={
                "messages": (*document.messages[:-1], Message(role="assistant", content=answer))
            }
        )
        if answer.split() == document.messages[-1].content.split():
            raise InputError(
                f"The other answer to {document.id!r} is the one to forget.",
                "Give a different one.",
            )
        pair = [encode(tokenizer, d, max_tokens) for d in (document, other)]
        if len(pair[0]) > 1:
            raise InputError(
                f"Document {document.id!r} is longer than {max_tokens} tokens, and this method compares "
                "whole answers.",
                "Split it into shorter conversations, or choose npo or graddiff.",
            )
        if pair[0] and pair[1]:
            gone.append(pair[0][0])
            preferred.append(pair[1][0])
    return tuple(gone), tuple(preferred)


def refusals(forget: Sequence[Document], seed: int) -> list[str]:
    """One refusal a document, by its id and the seed."""
    _conversations(forget)
    return [REFUSALS[_number(f"{seed}\0{document.id}") % len(REFUSALS)] for document in forget]


def alternatives(
    model: CausalModel,
    forget: Sequence[Document],
    given: Mapping[str, str],
    *,
    max_new_tokens: int = 48,
) -> list[str]:
    """One other answer a document: a given one by id, or what the model in place makes up (greedy).

    Put the knowledge aside first: without the adapter, the model makes up what fits the question. Where
    that is nothing, or the document's own answer, a refusal stands for it.
    """
    _conversations(forget)
    asked = [d for d in forget if d.id not in given]
    prompts = [prompt_ids(model.tokenizer, _INVENT.format(question=_question(d))) for d in asked]
    made = generate(model, prompts, max_new_tokens=max_new_tokens) if asked else []
    words = [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
    found = dict(given)
    for document, text in zip(asked, words, strict=True):
        own = text.split() == document.messages[-1].content.split()
        refusal = REFUSALS[_number(document.id) % len(REFUSALS)]
        found[document.id] = refusal if own or not text else text
    return [found[d.id] for d in forget]


def _question(document: Document) -> str:
    return next(m.content for m in reversed(document.messages) if m.role == "user")


def _conversations(documents: Sequence[Document]) -> None:
    for document in documents:
        if not document.messages:
            raise InputError(
                f"Document {document.id!r} is a plain text, which asks nothing.",
                "This method needs questions with answers (messages); npo and graddiff need none.",
            )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def inputs_digest(material: Material) -> str:
    """SHA-256 (hex) over token ids and loss marks of all that a run reads."""
    total = hashlib.sha256()
    for name in ("forget", "retain", "preferred", "utility"):
        examples: tuple[Example, ...] = getattr(material, name)
        total.update(f"{name} {len(examples)}\n".encode())
        for example in examples:
            total.update(f"{list(example.ids)} {[int(x) for x in example.loss]}\n".encode())
    return total.hexdigest()
