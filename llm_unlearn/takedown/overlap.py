"""What two texts share, down to their letters: folding, tiles and passages.

Guarantees: `fold` sees through case, white space, punctuation, Unicode form and diacritics: two
texts that differ in nothing else fold to the same letters. `passages` finds what two texts share
in stretches, bridging single wrong letters as a bad scan makes them, and says where it lies in
both, in characters of the text as given.

Does not guarantee: that passages are the best possible ones. They come from greedy string tiling
(Wise 1993; used by JPlag, Prechelt et al. 2002) with a bounded number of places tried for each
tile, so a text that repeats itself many times may be paired with another of its repetitions.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

TILE: Final = 6
"""Fewest letters in a row that count as shared."""
_GAP: Final = 24
"""Letters that a passage may bridge between two tiles, in either text."""
_SHIFT: Final = 8
"""How much longer such a bridge may be in one text than in the other."""
_PLACES: Final = 16
"""Places in the first text tried for one tile: half before and half after the expected one."""

# Scripts written without blanks between words: each letter counts as a word.
_UNSPACED: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0x20000, 0x3FFFF),  # Han, later extensions
)


class _Folding(dict[int, str]):
    """Character to its letters, filled as characters are met; anything else is a blank.

    Letter by letter, so that positions can be traced back. Upper case comes first because some
    letters only meet there: "ß" and "SS", "ı" and "I".
    """

    def __missing__(self, code: int) -> str:
        upper = unicodedata.normalize("NFKD", chr(code)).upper()
        self[code] = "".join(map(_letter, unicodedata.normalize("NFKD", upper.casefold())))
        return self[code]


def _letter(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Mn", "Me", "Cf"):  # diacritics, joiners, soft hyphens
        return ""
    if category[0] not in "LN" and category != "Mc":
        return " "
    code = ord(character)
    return f" {character} " if any(a <= code <= b for a, b in _UNSPACED) else character


_FOLDING: Final = _Folding()


@dataclass(frozen=True)
class Folded:
    """A text and its bare words: lower case, no diacritics, no punctuation."""

    text: str
    words: tuple[str, ...]

    @cached_property
    def letters(self) -> str:
        """All words without blanks: what is left when a text is retyped carelessly."""
        return "".join(self.words)

    @cached_property
    def _places(self) -> list[int]:
        """For each letter the index in `text` of the character it comes from."""
        return [
            place
            for place, character in enumerate(self.text)
            for letter in _FOLDING[ord(character)]
            if letter != " "
        ]

    @cached_property
    def _starts(self) -> list[int]:
        """For each word the index of its first letter in `letters`."""
        starts, at = [], 0
        for word in self.words:
            starts.append(at)
            at += len(word)
        return starts

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The characters of `text` that letters `start` to `end` (exclusive, not empty) span."""
        return self._places[start], self._places[end - 1] + 1

    def count_words(self, start: int, end: int) -> int:
        """How many words lie whole within letters `start` to `end`, but for a letter at the rim."""
        first = bisect_left(self._starts, start - 1)
        last = bisect_right(self._starts, end)
        if last and last <= len(self.words):
            word = self.words[last - 1]
            if self._starts[last - 1] + len(word) > end + 1:
                last -= 1
        return max(0, last - first)


def fold(text: str) -> Folded:
    """The words of a text, bare.

    >>> fold("Don't  PANIC, Zoë!").words
    ('don', 't', 'panic', 'zoe')
    """
    return Folded(text, tuple(text.translate(_FOLDING).split()))


def shingles(words: tuple[str, ...], size: int) -> set[str]:
    """All runs of `size` consecutive words; the whole text as one if it is shorter."""
    if len(words) < size:
        return {" ".join(words)} if words else set()
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def jaccard(a: set[str], b: set[str]) -> float:
    """Shared over all, 0 when both are empty (Broder 1997)."""
    return len(a & b) / max(1, len(a | b))


class Tile(NamedTuple):
    """A run of equal letters: where it starts in the letters of each text, and its length."""

    a: int
    b: int
    length: int


class Passage(NamedTuple):
    """A stretch that two texts share, perhaps with single letters wrong.

    Attributes:
        a, b: (start, end) in characters of each text as given.
        words: how many whole words of the first text it spans.
        tiles: the runs of letters that agree, in order.
    """

    a: tuple[int, int]
    b: tuple[int, int]
    words: int
    tiles: tuple[Tile, ...]

    @property
    def agreement(self) -> float:
        """Share of the letters in between that agree, in (0, 1]."""
        first, last = self.tiles[0], self.tiles[-1]
        span = max(last.a + last.length - first.a, last.b + last.length - first.b)
        return min(1.0, sum(tile.length for tile in self.tiles) / span)


class Tiler:
    """One text, ready to be compared with many."""

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self._index: dict[str, list[int]] = defaultdict(list)
        letters = folded.letters
        for i in range(len(letters) - TILE + 1):
            self._index[letters[i : i + TILE]].append(i)

    def passages(self, other: Folded) -> list[Passage]:
        """What this text (a) and `other` (b) share, in the order of `other`.

        Time is linear in the length of `other`.
        """
        found: list[Passage] = []
        chain: list[Tile] = []
        for tile in self._tiles(other.letters):
            if chain and not _follows(chain[-1], tile):
                found.append(self._passage(chain, other))
                chain = []
            chain.append(tile)
        if chain:
            found.append(self._passage(chain, other))
        return found

    def _tiles(self, b: str) -> Iterator[Tile]:
        """From left to right in b, the longest run of letters that a has too."""
        a = self.folded.letters
        at, shift = 0, 0
        while at <= len(b) - TILE:
            places = self._index.get(b[at : at + TILE])
            if places is None:
                at += 1
                continue
            middle = bisect_left(places, at + shift)
            near = places[max(0, middle - _PLACES // 2) : middle + _PLACES // 2]
            best, length = near[0], 0
            for place in near:
                run = _run(a, b, place, at)
                closer = abs(place - at - shift) < abs(best - at - shift)
                if run > length or (run == length and closer):
                    best, length = place, run
            yield Tile(best, at, length)
            shift = best - at
            at += length

    def _passage(self, chain: list[Tile], other: Folded) -> Passage:
        first, last = chain[0], chain[-1]
        return Passage(
            a=self.folded.span(first.a, last.a + last.length),
            b=other.span(first.b, last.b + last.length),
            words=self.folded.count_words(first.a, last.a + last.length),
            tiles=tuple(chain),
        )


def _run(a: str, b: str, i: int, j: int) -> int:
    """How many letters agree from a[i] and b[j] on; at least TILE do."""
    length = TILE
    end = min(len(a) - i, len(b) - j)
    step = 32
    while length < end and a[i + length : i + length + step] == b[j + length : j + length + step]:
        length = min(end, length + step)
    while length < end and a[i + length] == b[j + length]:
        length += 1
    return length


def _follows(before: Tile, tile: Tile) -> bool:
    """Whether a tile goes on where the one before it stopped, in both texts."""
    gap_a = tile.a - before.a - before.length
    gap_b = tile.b - before.b - before.length
    return -TILE < gap_a <= _GAP and gap_b <= _GAP and abs(gap_a - gap_b) <= _SHIFT


def passages(a: str, b: str) -> list[Passage]:
    """What two texts share, for showing them side by side.

    >>> passages("The moon is full tonight.", "Look: the moon is fulI tonight!")[0].b
    (6, 30)
    """
    return Tiler(fold(a)).passages(fold(b))
