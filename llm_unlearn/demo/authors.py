"""TOFU's authors as documents: one subject each, one conversation a question.

TOFU (Maini et al. 2024) is read by path and never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_unlearn.documents import Document, Message
from llm_unlearn.eval.benchmarks import tofu


def conversations(
    rows: Sequence[tofu.Row],
    *,
    authors: int | None = None,
    questions: int | None = None,
    tags: Callable[[int], tuple[str, ...]] = lambda _author: (),
) -> list[Document]:
    """The first `questions` questions of each of the first `authors` authors; None means all.

    Args:
        rows: of TOFU's `full.json`.
        tags: of an author's documents, by number.
    """
    return [
        Document(
            id=f"author-{number:03d}/{k:02d}",
            subject=f"author-{number:03d}",
            source="tofu/full.json",
            tags=tags(number),
            messages=(
                Message(role="user", content=row.question),
                Message(role="assistant", content=row.answer),
            ),
        )
        for number, mine in enumerate(tofu.authors(rows)[:authors])
        for k, row in enumerate(mine[:questions])
    ]
