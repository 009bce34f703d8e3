"""What stands before unchanged weights: nothing, words around the question, or a guard.

Guarantees: each is a function of the question alone, so that all probes that ask can ask through it;
none changes a weight. What the weights themselves still know is measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from llm_unlearn.documents import Document, Message
from llm_unlearn.experiments.problem import question
from llm_unlearn.experiments.settings import Front
from llm_unlearn.forget.baselines import Guard, in_context_turns, system_prompt
from llm_unlearn.retrieval.embedding import Embedder, encode

Turns = Callable[[str], list[Message]]


def plain(asked: str) -> list[Message]:
    """The question alone."""
    return [Message(role="user", content=asked)]


@dataclass(frozen=True)
class Asking:
    """How a question is put, and what guards question and answer."""

    turns: Turns = plain
    guard: Guard | None = None

    def guarded(self, asked: str, answer: str) -> str:
        """The answer as the asker gets it."""
        return answer if self.guard is None else self.guard.answer(asked, lambda _: answer)


def front(
    name: Front,
    embedder: Embedder,
    gone: Sequence[Document],
    kept: Sequence[Document],
    *,
    topic: str,
    context: int,
    threshold: float,
) -> Asking:
    """A front by name.

    Args:
        gone: what it should hide; `kept` what in-context unlearning shows as right.
        context: how many of each in-context unlearning shows, the nearest forgotten ones.
    """
    if name == "system-prompt":
        return Asking(partial(_system, system_prompt([topic])))
    if name == "guard":
        return Asking(guard=Guard.over(embedder, gone, threshold))
    vectors = np.concatenate([encode(embedder, [question(d)]) for d in gone])

    def turns(asked: str) -> list[Message]:
        near = vectors @ encode(embedder, [asked])[0]
        order = sorted(range(len(gone)), key=lambda i: (-float(near[i]), gone[i].id))
        chosen = [gone[i] for i in order[:context]]
        return in_context_turns(asked, chosen, kept[:context])

    return Asking(turns)


def _system(said: str, asked: str) -> list[Message]:
    return [Message(role="system", content=said), *plain(asked)]
