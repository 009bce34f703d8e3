"""One question to the live documents: checked, and turned into a ranked list of chunks.

Guarantees: `find` is a pure function of the query and the live documents; what the tests refuse is
neither ranked nor counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_unlearn.errors import AccessDenied, InputError
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.retrieval.fusion import diversify, fuse
from llm_unlearn.retrieval.live import Found, LiveIndex, Tests
from llm_unlearn.retrieval.visibility import any_of
from llm_unlearn.retrieval.where import Mark, Where

Mode = Literal["dense", "lexical", "hybrid"]
_MOST = 1000  # hits per search


@dataclass(frozen=True)
class Query:
    """A question that has been checked.

    Raises:
        InputError: a value is out of range.
    """

    text: str
    unit: Floats
    k: int
    tests: Tests
    mode: Mode = "dense"
    diversity: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= _MOST:
            raise InputError(f"k={self.k} is out of range.", f"Ask for 1 to {_MOST} hits.")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity={self.diversity} is out of range.", "Give 0 to 1.")
        if self.mode not in ("dense", "lexical", "hybrid"):
            raise InputError(f"mode={self.mode!r} is unknown.", "Use dense, lexical or hybrid.")

    def find(self, live: LiveIndex) -> list[Found]:
        """The best `k` chunks, best first, each with its cosine."""
        plain = self.mode != "hybrid" and not self.diversity
        n = self.k if plain else max(50, 10 * self.k)
        rankings = []
        if self.mode != "lexical":
            rankings.append(live.search(self.unit, n, self.tests))
        if self.mode != "dense":
            rankings.append(live.search_words(self.text, self.unit, n, self.tests))
        found = rankings[0] if len(rankings) == 1 else _fused(rankings)
        if not self.diversity:
            return found[: self.k]
        rows = [live.index.vectors(entry)[chunk] for _, entry, chunk in found]
        scores = [score for score, _, _ in found]
        chosen = diversify(scores, np.array(rows), self.k, self.diversity)
        return [found[i] for i in chosen]


def access(groups: Collection[str], where: Where | None, mark: Mark) -> Tests:
    """What a document must pass to be seen, by attribute.

    Raises:
        AccessDenied: `groups` is empty.
        InputError: `groups` is not a collection of names.
    """
    if isinstance(groups, str) or not all(isinstance(group, str) for group in groups):
        raise InputError(f"groups must be a collection of names, not {groups!r}.")
    if not groups:
        raise AccessDenied("a caller without groups sees nothing.", "Name the caller's groups.")
    return {"acl": any_of(groups), **(where.tests(mark) if where else {})}


def _fused(rankings: Sequence[Sequence[Found]]) -> list[Found]:
    by_place = {(entry.handle, chunk): (s, entry, chunk) for r in rankings for s, entry, chunk in r}
    places = [[(entry.handle, chunk) for _, entry, chunk in ranking] for ranking in rankings]
    return [by_place[place] for place in fuse(places)]
