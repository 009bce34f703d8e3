"""Word search over live chunks: BM25, in memory.

Guarantees: scores are a pure function of the visible chunks and the query: every statistic (number
of chunks, how many hold a word, mean length) is an exact integer count over what the caller may
see, so neither deleted nor hidden documents move a score. It keeps nothing on disk and is not
thread-safe. A query costs a pass over the lengths of all visible chunks, and over those that hold its
words.

Formula: BM25 of Robertson and Zaragoza 2009 with k1 = 1.2, b = 0.75 and the idf of Lucene,
ln(1 + (N - n + 1/2) / (n + 1/2)), which is never negative. Words are runs of letters and digits,
case folded; no stemming, no stop words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from llm_unlearn.documents import normalise

_K1 = 1.2
_B = 0.75
_WORD = re.compile(r"[^\W_]+")
Place = tuple[bytes, int]  # handle, chunk number


def words(text: str) -> list[str]:
    """The words of a text, in order.

    >>> words("The FULL moon, 2nd")
    ['the', 'full', 'moon', '2nd']
    """
    return _WORD.findall(normalise(text))


class Lexical:
    """Chunks by the words they hold."""

    def __init__(self) -> None:
        self._counts: dict[bytes, list[Counter[str]]] = {}
        self._lengths: dict[bytes, list[int]] = {}
        self._holders: dict[str, set[bytes]] = {}

    def add(self, handle: bytes, chunks: Sequence[str]) -> None:
        """Take up a document by the texts of its chunks."""
        counts = [Counter(words(chunk)) for chunk in chunks]
        self._counts[handle] = counts
        self._lengths[handle] = [count.total() for count in counts]
        for word in set().union(*counts):
            self._holders.setdefault(word, set()).add(handle)

    def remove(self, handle: bytes) -> None:
        """Forget a document, and the words that no other holds."""
        for word in set().union(*self._counts.pop(handle)):
            holders = self._holders[word]
            holders.discard(handle)
            if not holders:
                del self._holders[word]
        del self._lengths[handle]

    def search(
        self, query: str, k: int, visible: Callable[[bytes], bool] | None = None
    ) -> list[tuple[float, Place]]:
        """The `k` best chunks that hold a word of the query, as (score, place), best first.

        Equal scores are ordered by place. `visible` tells whose documents count and may answer.
        """
        lengths = [
            length
            for handle, chunks in self._lengths.items()
            if visible is None or visible(handle)
            for length in chunks
        ]
        total, held = len(lengths), sum(lengths)
        scores: dict[Place, float] = {}
        for word in sorted(set(words(query))):  # a fixed order of addition
            found = [
                ((handle, chunk), count[word])
                for handle in self._holders.get(word, ())
                if visible is None or visible(handle)
                for chunk, count in enumerate(self._counts[handle])
                if word in count
            ]
            idf = math.log(1 + (total - len(found) + 0.5) / (len(found) + 0.5))
            for place, count in found:
                length = self._lengths[place[0]][place[1]]
                norm = _K1 * (1 - _B + _B * length * total / held)
                gain = idf * count * (_K1 + 1) / (count + norm)
                scores[place] = scores.get(place, 0.0) + gain
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        return [(score, place) for place, score in best]
