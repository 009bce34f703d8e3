"""A second look at documents whose vectors lie near those of a request: sentence by sentence.

A summary of several documents, or one told in other words among other matter, has a vector that lies near
theirs but not close. Half of its sentences, or more, each lie close to some sentence of the request.

Guarantees: sentences of the request are embedded once, and only when a document asks for it; nothing
is kept beyond the call. Does not guarantee anything about what it finds: it is for people to judge.
Measured rates stand in docs/closure.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SENTENCES: Final = 3
"""Sentences that a document must have: of two, one alike by chance would do."""
_SENTENCE_WORDS: Final = 5
_ENDS: Final = re.compile(r"(?<=[.!?])\s+|\n+")


class Sentences:
    """The sentences of the request, embedded when a candidate is worth a second look."""

    def __init__(
        self,
        texts: Sequence[str],
        groups: Sequence[int],
        least: float,
        embed: Callable[[Sequence[str]], NDArray[np.float32]],
    ) -> None:
        self._texts, self._groups, self._least, self._embed = texts, groups, least, embed
        self._known: dict[int, NDArray[np.float32] | None] = {}

    def score(self, text: str, group: int) -> float:
        """The cosine that half of a candidate's sentences reach; 0 if it has too few."""
        mine = sentences(text)
        if len(mine) < _SENTENCES:
            return 0.0
        if group not in self._known:
            pairs = zip(self._texts, self._groups, strict=True)
            theirs = [s for wanted, owner in pairs if owner == group for s in sentences(wanted)]
            self._known[group] = self._embed(theirs) if theirs else None
        rows = self._known[group]
        if rows is None:
            return 0.0
        cosine = np.sort((self._embed(mine) @ rows.T).max(axis=1))[::-1]  # best first
        return max(0.0, min(1.0, float(cosine[(len(cosine) - 1) // 2])))


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, short ones left out.

    >>> sentences("She sailed on a Monday in May. Alone! Nobody had seen the harbour empty before.")
    ['She sailed on a Monday in May.', 'Nobody had seen the harbour empty before.']
    """
    return [part for part in _ENDS.split(text) if len(part.split()) >= _SENTENCE_WORDS]
