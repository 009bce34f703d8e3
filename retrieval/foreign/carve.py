"""Texts and vectors found in raw bytes, and not among what is live.

How: a passage is a run of at least 48 bytes of printable UTF-8 that could be words. What is live
is remembered as 16-byte grams at every 32nd byte of each text, so that any 47 bytes of a live text
hold one. In files whose values stand apart (SQLite) a passage is live when at least half of it is
covered by such grams; where values are joined without a mark between them, the live stretches are
cut out and each rest of at least 48 bytes is a passage. A vector is `dim` little-endian float32 in a
row that could be components of an embedding (0, or between 1e-8 and 1e3 in size; more than half not
0; not all printable), or `dim` floats of a pickle; it is live when a live one points the same way.

Not guaranteed: an exact number. What is compressed, encrypted, in another encoding or shorter
than 48 bytes is not seen; two deleted texts side by side may count once, one in two pieces twice; a
deleted text without a blank is taken for a name, and one whose words half stand in live texts for
live; so is a vector that points where a live one does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SHORTEST = 48  # bytes of a passage
_GRAM = 16
_STRIDE = 32
_SPARE = 8  # floats that may stand before the first of a run
# possessive, so that no input makes it try twice
_RUN = re.compile(
    rb"(?:[ -~\t\n\r]++|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})++"
)


class Live:
    """What is live, in the form in which raw bytes can be compared with it."""

    def __init__(self) -> None:
        self._grams: set[bytes] = set()
        self._heads: set[bytes] = set()
        self._units: dict[int, list[NDArray[np.float32]]] = {}  # by dimension

    def add_text(self, text: bytes) -> None:
        """A live text as UTF-8."""
        for at in range(0, max(len(text) - _GRAM, 0) + 1, _STRIDE):
            self._grams.add(text[at : at + _GRAM])

    def add_vectors(self, vectors: NDArray[np.float32]) -> None:
        """Live vectors (n, dim)."""
        if not vectors.size:
            return
        self._units.setdefault(vectors.shape[1], []).append(_unit(vectors))
        self._heads.update(row[:4].tobytes() for row in np.ascontiguousarray(vectors, "<f4"))

    def has_head(self, head: bytes) -> bool:
        """Whether a live vector begins with these 16 bytes."""
        return head in self._heads

    def dead(self, vectors: NDArray[np.float32]) -> int:
        """How many of these (n, dim) point nowhere that a live one does.

        Graphs for cosine keep a vector at length one, the table beside them as it came.
        """
        units = _unit(vectors)
        near = np.zeros(len(units), bool)
        with np.errstate(all="ignore"):
            for block in self._units.get(units.shape[1], []):
                for at in range(0, len(units), 1024):  # 1024 x n scores at a time
                    part = units[at : at + 1024] @ block.T
                    near[at : at + 1024] |= (part > 1 - 1e-5).any(axis=1)
        return int((~near).sum())

    def gaps(self, passage: bytes) -> list[tuple[int, int]]:
        """The stretches of a passage that no live text covers."""
        grams, at, free, found = self._grams, 0, 0, []
        while at <= len(passage) - _GRAM:
            if passage[at : at + _GRAM] in grams:
                found.append((free, at))
                at = free = min(at + _STRIDE, len(passage))
            else:
                at += 1
        found.append((free, len(passage)))
        return [(start, end) for start, end in found if end > start]


def count(
    parts: Iterable[bytes], dims: Collection[int], live: Live, *, joined: bool
) -> tuple[int, int]:
    """How many texts and vectors stand in raw bytes and are not live; copies count once."""
    found: set[bytes] = set()
    several, known = 0, set[bytes]()
    for part in parts:
        found.update(passages(part, live, joined=joined))
        several += vectors(part, dims, live, known)
    seen, texts = Live(), 0
    for passage in sorted(found, key=lambda passage: (-len(passage), passage)):
        if sum(end - start for start, end in seen.gaps(passage)) * 2 > len(passage):
            seen.add_text(passage)
            texts += 1
    return texts, several


def _worded(passage: bytes) -> bool:
    """Whether it could be words: names that run together, padding and rulers are none."""
    text = passage.decode("utf-8", "replace")
    return len(set(text)) >= 12 and (" " in text.strip() or not text.isascii())


def passages(data: bytes, live: Live, *, joined: bool) -> Iterator[bytes]:
    """The passages in raw bytes that are not live."""
    for match in _RUN.finditer(data):
        run = match.group()
        if len(run) < SHORTEST:
            continue
        gaps = live.gaps(run)
        if joined:
            rests = [run[a:b] for a, b in gaps]
        else:
            rests = [run] if sum(b - a for a, b in gaps) * 2 > len(run) else []
        yield from (r for r in rests if len(r.strip()) >= SHORTEST and _worded(r))


def vectors(data: bytes, dims: Iterable[int], live: Live, known: set[bytes] | None = None) -> int:
    """How many vectors of one of these dimensions stand in raw bytes and are not live.

    `known` remembers those counted, so that they are not counted again.
    """
    known = set() if known is None else known
    count = 0
    # shorter ones cannot be told from chance, longer ones nobody has
    for dim in {dim for dim in dims if 8 <= dim <= 65536}:
        for ways in (*_plain(data, dim, live), *_pickled(data, dim, live)):
            heads = {row[:4].tobytes() for row in ways}
            if known.isdisjoint(heads) and live.dead(ways) == len(ways):
                count += 1
                known |= heads
    return count


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # a damaged file has any bits
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        unit: NDArray[np.float32] = (vectors / np.maximum(norms, 1e-30)).astype(np.float32)
    return unit


def _plain(data: bytes, dim: int, live: Live) -> Iterator[NDArray[np.float32]]:
    for shift in range(4):
        if len(data) < shift + 4 * dim:
            return
        floats = np.frombuffer(data, "<f4", offset=shift, count=(len(data) - shift) // 4)
        with np.errstate(invalid="ignore"):
            size = np.abs(floats)
            fits = (size == 0) | ((size > 1e-8) & (size < 1e3))
        edges = np.flatnonzero(np.diff(fits.astype(np.int8), prepend=0, append=0))
        for start, end in edges.reshape(-1, 2):
            if end - start >= dim:
                yield from _in_run(floats[start:end], dim, live)


def _in_run(run: NDArray[np.float32], dim: int, live: Live) -> Iterator[NDArray[np.float32]]:
    """Vectors end to end in a run, each as the ways (n, dim) in which it may be read.

    A live one shows where they begin. Else what stands before the first, a digit of a name, may look
    like a component, so that each may begin a few places later.
    """
    raw = run.tobytes()
    starts = [
        int(at)
        for at in np.flatnonzero(run[: len(run) - dim + 1])
        if live.has_head(raw[at * 4 : at * 4 + 16])
    ]
    places = [-dim, *starts, len(run)]
    for before, after in pairwise(places):
        free, end = before + dim, after
        if before == -dim and starts:
            free = after % dim  # what comes before the first live one ends where that begins
        spare = 0 if starts else min((end - free) % dim, _SPARE)
        while free + dim <= end:
            part = run[free : free + dim]
            if not np.any(part):  # zeroes, which a large file has by the million
                more = np.flatnonzero(run[free:end])
                if not more.size:
                    break
                free += int(more[0])
                continue
            data = part.tobytes()
            if 2 * np.count_nonzero(part) > dim and not _RUN.fullmatch(data):
                yield np.stack([run[at : at + dim] for at in range(free, free + spare + 1)])
            free += dim


def _pickled(data: bytes, dim: int, live: Live) -> Iterator[NDArray[np.float32]]:
    """Vectors as lists of floats in a pickle: `G` and eight bytes each, big-endian."""
    for match in re.finditer(rb"(?:G[\x00\x3a-\x42\x80\xba-\xc2].{7}){%d}" % dim, data, re.DOTALL):
        raw = np.frombuffer(match.group(), np.uint8).reshape(dim, 9)[:, 1:]
        floats = np.ascontiguousarray(raw).view(">f8").ravel()
        with np.errstate(all="ignore"):
            floats = floats.astype("<f4")
        if not live.has_head(floats[:4].tobytes()):
            yield floats[None]
