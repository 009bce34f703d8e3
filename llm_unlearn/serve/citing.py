"""Which passages an answer was given, and which of them it repeats words of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llm_unlearn.retrieval import Hit
from llm_unlearn.serve.wire import Citation
from llm_unlearn.takedown.overlap import fold

RUN: Final = 4
"""So many words in a row in common mark a passage."""


def citations(hits: Sequence[Hit]) -> list[Citation]:
    """The passages, numbered from 1, best first."""
    return [
        Citation(
            marker=number,
            document=hit.document,
            subject=hit.subject,
            source=hit.source,
            license=hit.license,
            start=hit.start,
            end=hit.end,
            score=hit.score,
            text=hit.text,
        )
        for number, hit in enumerate(hits, start=1)
    ]


def marked(hits: Sequence[Hit], text: str) -> list[int]:
    """Markers of the passages that share `RUN` words in a row with a text, or all of a shorter one."""
    words = fold(text).words
    size = min(RUN, len(words))
    if not size:
        return []
    runs = {words[i : i + size] for i in range(len(words) - size + 1)}
    found = []
    for number, hit in enumerate(hits, start=1):
        theirs = fold(hit.text).words
        if any(theirs[i : i + size] in runs for i in range(len(theirs) - size + 1)):
            found.append(number)
    return found
