"""What can be done without touching a weight: words around the question, or a guard before the answer.

Guarantees: nothing is forgotten. The text stays in the weights for whoever has them, or asks past the
words; these belong in the same tables as the methods so that this shows. In-context unlearning follows
Pawelczyk et al. 2024 (arXiv 2310.07579), the guard Thaker et al. 2024 (arXiv 2403.03329).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_unlearn.documents import Document, Message
from llm_unlearn.forget.data import REFUSALS
from llm_unlearn.models.chat import render
from llm_unlearn.retrieval.embedding import Embedder, Floats, encode


def in_context(
    tokenizer: Any, question: str, forget: Sequence[Document], retain: Sequence[Document]
) -> list[int]:
    """The token ids of `in_context_turns`, up to where the assistant speaks.

    Raises:
        ValueError: as there.
    """
    turns = in_context_turns(question, forget, retain)
    ids: list[int] = tokenizer(render(tokenizer, turns, prompt=True), add_special_tokens=False)[
        "input_ids"
    ]
    return ids


def in_context_turns(
    question: str, forget: Sequence[Document], retain: Sequence[Document]
) -> list[Message]:
    """Forgotten questions answered wrongly, kept ones rightly, then the question.

    The wrong answer of each is that of the next, so a single document needs another's.

    Raises:
        ValueError: fewer than two documents in all, or a document without a question.
    """
    every = [*forget, *retain]
    if len(every) < 2 or not forget:
        raise ValueError("in-context unlearning needs a text to forget and another's answer")
    turns: list[Message] = []
    for i, document in enumerate(forget):
        asked, _ = _turns(document)
        wrong = _turns(every[i + 1] if i + 1 < len(every) else every[0])[1]
        turns += [asked, wrong]
    for document in retain:
        turns += _turns(document)
    return [*turns, Message(role="user", content=question)]


def system_prompt(subjects: Sequence[str]) -> str:
    """What a system message says so that the model plays not to know some subjects.

    >>> system_prompt(["Ada"])
    'You know nothing about Ada. If a question is about that, say that you do not know.'
    """
    names = ", ".join(subjects)
    return f"You know nothing about {names}. If a question is about that, say that you do not know."


@dataclass(frozen=True)
class Guard:
    """Refuses a question or an answer that is like a text to be forgotten.

    Args:
        vectors: (n, d) unit vectors of those texts; they reveal the texts, so keep them like the texts.
        threshold: cosine from which on the guard refuses.
    """

    embedder: Embedder
    vectors: Floats
    threshold: float = 0.5
    message: str = REFUSALS[0]

    @classmethod
    def over(cls, embedder: Embedder, forget: Sequence[Document], threshold: float = 0.5) -> Guard:
        """A guard over the questions and the texts of some documents."""
        texts = [part for d in forget for part in _parts(d)]
        return cls(embedder, np.concatenate([encode(embedder, [t]) for t in texts]), threshold)

    def likeness(self, text: str) -> float:
        """The largest cosine to a guarded text."""
        return float((self.vectors @ encode(self.embedder, [text])[0]).max())

    def answer(self, question: str, ask: Callable[[str], str]) -> str:
        """The answer, or a refusal; a refused question is never asked."""
        if self.likeness(question) >= self.threshold:
            return self.message
        found = ask(question)
        return self.message if found and self.likeness(found) >= self.threshold else found


def _turns(document: Document) -> tuple[Message, Message]:
    if len(document.messages) < 2:
        raise ValueError(f"document {document.id!r} is no question with an answer")
    return document.messages[-2], document.messages[-1]


def _parts(document: Document) -> list[str]:
    if document.text is not None:
        return [document.text]
    return [m.content for m in document.messages if m.role != "system"]
