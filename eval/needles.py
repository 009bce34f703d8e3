"""What a residue scan looks for: the removed texts, tokens, vectors and keys in every encoding.

A needle is a sequence of units (characters, tokens, numbers, bytes). A fragment is a run of a fixed
number of units: 24 characters, 12 tokens of two bytes or in decimal or 6 wider ones, 16 numbers, 24
key bytes. The encodings (`forms`): of text UTF-8, also as JSON escapes it, UTF-16, UTF-32 little
endian, hex, base64; of tokens integers of 2, 4 and 8 bytes and decimal; of vectors float32, float16
and bfloat16; of keys raw, hex, base64.

Guarantees: every fragment of a needle, in every listed encoding, lying anywhere in a stream, is
found, unless it also occurs in a retained (background) text or is trivial (a line of dashes, a row
of zeros): such fragments prove nothing, are dropped, and are counted. Needles too short for a
fragment are searched for whole; what is too short even for that is listed in `unsearchable`.

How: the scanned stream is sampled, every 8th byte, 16 bytes wide, and looked up in a hash table of
the needles' 16-byte windows; each hit is then compared byte by byte. A fragment of 24 bytes always
holds one sample, longer ones more, so the table needs only some of the windows of wide encodings.

It does not find: fewer units than a fragment, other encodings (encryption, other character sets,
quantized vectors), or text that was reworded. Text is looked for as given, in NFC, in NFC with
white space as one blank, and folded (NFKC, lower case, white space as one blank).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import ahocorasick_rs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.documents import normalise
from llm_unlearn.errors import InputError
from llm_unlearn.eval.forms import (
    FRAGMENT,
    NUMBERS,
    STEP,
    WINDOW,
    Form,
    codes_of,
    key_forms,
    live_fragments,
    text_forms,
    token_forms,
    variants_of,
    vector_forms,
)

_SHORT_TEXT, _SHORT_KEY = 8, 16  # the least that is searched for whole
_TABLE_BITS = (16, 26)
_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd: xxHash's primes

Words = NDArray[np.uint64]
Source = Literal["text", "tokens", "vector", "key"]


@dataclass(frozen=True, slots=True)
class Unsearchable:
    """A needle, by kind and index among those given, that cannot be looked for, and why."""

    source: Source
    index: int
    reason: str


class HashSet:
    """A set of 64-bit hashes that answers for whole arrays: two bit tables first, then exactly."""

    def __init__(self, hashes: Words) -> None:
        self.sorted = np.unique(hashes)
        low, high = _TABLE_BITS
        bits = min(high, max(low, (16 * max(1, len(self.sorted))).bit_length()))
        self._shift, self._mask = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self._high, self._low = np.zeros(1 << bits, bool), np.zeros(1 << bits, bool)
        self._high[(self.sorted >> self._shift).view(np.int64)] = True
        self._low[(self.sorted & self._mask).view(np.int64)] = True

    def which(self, hashes: Words) -> NDArray[np.int64]:
        """Indices of the hashes that are in the set."""
        if not len(self.sorted):
            return np.zeros(0, np.int64)
        high = self._high.take((hashes >> self._shift).view(np.int64))
        maybe: NDArray[np.int64] = np.flatnonzero(high)
        maybe = maybe[self._low.take((hashes[maybe] & self._mask).view(np.int64))]
        if not len(maybe):
            return maybe
        found = hashes[maybe]
        slot = np.minimum(np.searchsorted(self.sorted, found), len(self.sorted) - 1)
        true: NDArray[np.int64] = maybe[self.sorted[slot] == found]
        return true


def hash_windows(first: Words, second: Words) -> Words:
    """Hash of each 16-byte window, from its two halves as little-endian 64-bit words."""
    mixed = first * _A
    mixed ^= second * _B
    mixed *= _A
    return mixed


def _zero_bytes(words: Words, *, high: bool) -> NDArray[np.int64]:
    """Number of zero bytes at the high (last in memory) or low end of each word, 0 to 8."""
    count = np.zeros(len(words), np.int64)
    for k in range(1, 9):
        bits = np.uint64(8 * (8 - k))
        count += (words >> bits if high else words << bits) == 0
    return count


def _words_at(data: bytes, at: NDArray[np.int64]) -> tuple[Words, Words]:
    every = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), WINDOW)
    both = np.ascontiguousarray(every[at]).view("<u8").astype(np.uint64, copy=False)
    return both[:, 0], both[:, 1]


def _grams(codes: NDArray[np.uint64]) -> Words:
    """A 64-bit hash of every run of `FRAGMENT` codes, equal for equal runs.

    A polynomial of the scrambled codes modulo 2^64, built from runs of 2, 4, 8 and three times 8.
    """
    if len(codes) < FRAGMENT:
        return np.zeros(0, np.uint64)
    run = (codes + np.uint64(1)) * _A
    run ^= run >> np.uint64(29)
    base = _B
    for size in (1, 2, 4):
        run = run[:-size] * base + run[size:]
        base = np.uint64(int(base) ** 2 & (1 << 64) - 1)
    total = (run[:-16] * base + run[8:-8]) * base + run[16:]
    total ^= total >> np.uint64(32)
    total *= _A
    return total


@dataclass(slots=True)
class Needles:
    """What to look for, ready to be looked for. Made by `Needles.build`.

    Attributes:
        fragments: text fragments that are looked for (in the text as given).
        dropped: text fragments left out, because a retained text holds them or they are trivial.
        unsearchable: the needles that cannot be looked for, with the reason.
    """

    fragments: int = 0
    dropped: int = 0
    unsearchable: list[Unsearchable] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    table: HashSet = field(default_factory=lambda: HashSet(np.zeros(0, np.uint64)))
    # Parallel, sorted by hash: window -> form and position in its data.
    hashes: Words = field(default_factory=lambda: np.zeros(0, np.uint64))
    owners: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    # All forms' bytes with `STEP` others between, as (start, STEP) views, and where each begins.
    _starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    _beside: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, STEP), np.uint8))
    short: ahocorasick_rs.BytesAhoCorasick | None = None
    short_kinds: list[str] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        texts: Iterable[str] = (),
        *,
        tokens: Iterable[Sequence[int]] = (),
        vectors: ArrayLike | None = None,
        keys: Iterable[bytes] = (),
        background: Iterable[str] = (),
    ) -> Needles:
        """Make needles.

        Args:
            texts: texts that must not be found.
            tokens: token id sequences that must not be found, each at least 0.
            vectors: float array (rows, dim) whose rows must not be found.
            keys: secrets that must not be found, raw.
            background: retained texts, read once, one at a time; what they also hold is dropped.

        Raises:
            InputError: a negative token id, or vectors that are not a table of finite numbers.
        """
        made = cls()
        shorts: dict[bytes, str] = {}
        made._take_texts(list(texts), background, shorts)
        for i, ids in enumerate(tokens):
            if len(ids) and min(ids) < 0:
                raise InputError(f"token sequence {i} holds {min(ids)}.", "Ids are 0 or more.")
            if len(ids) < 6:
                made._cannot("tokens", i, f"only {len(ids)} tokens; 6 are needed")
            else:
                made._add("tokens", i, token_forms(ids))
        if vectors is not None:
            made._take_vectors(np.asarray(vectors, np.float32))
        for i, key in enumerate(keys):
            if len(key) < _SHORT_KEY:
                made._cannot("key", i, f"only {len(key)} bytes; {_SHORT_KEY} are needed")
            elif len(key) >= FRAGMENT:
                made._add("key", i, key_forms(key, FRAGMENT))
            else:
                made._add_short("key", i, key_forms(key, len(key)), shorts)
        made._index()
        if shorts:
            made.short = ahocorasick_rs.BytesAhoCorasick(list(shorts))
            made.short_kinds = list(shorts.values())
        return made

    def candidates(self, words: Words) -> Iterator[tuple[int, Form, int]]:
        """Sampled windows that a fragment may surround: index in `words`, form, place in its data.

        Args:
            words: the bytes of a stream as 64-bit words; the window at i is words i and i + 1.
        """
        at = self.table.which(hash_windows(words[:-1], words[1:]))
        if not len(at):
            return
        values = hash_windows(words[at], words[at + 1])
        low = np.searchsorted(self.hashes, values, side="left")
        count = np.searchsorted(self.hashes, values, side="right") - low
        entry = np.repeat(low - np.concatenate(([0], np.cumsum(count)[:-1])), count)
        entry += np.arange(len(entry))
        at = np.repeat(at, count)
        # A fragment of 24 bytes or more goes on for 8 bytes, before and after the window together.
        place = self._starts[self.owners[entry]] + self.places[entry]
        inner = (at > 0) & (at + 2 < len(words))
        before = words[np.maximum(at - 1, 0)] ^ self._word(place - STEP)
        after = words[np.minimum(at + 2, len(words) - 1)] ^ self._word(place + WINDOW)
        likely = ~inner | (_zero_bytes(before, high=True) + _zero_bytes(after, high=False) >= STEP)
        for i in np.flatnonzero(likely):
            yield int(at[i]), self.forms[self.owners[entry[i]]], int(self.places[entry[i]])

    def _word(self, place: NDArray[np.int64]) -> Words:
        both = np.ascontiguousarray(self._beside[place]).view("<u8")[:, 0]
        return both.astype(np.uint64, copy=False)

    def _cannot(self, source: Source, index: int, reason: str) -> None:
        self.unsearchable.append(Unsearchable(source, index, reason))

    def _add(self, source: Source, index: int, forms: Iterable[Form]) -> None:
        kept = [form for form in forms if form.live.any()]
        if not kept:
            self._cannot(source, index, "it is the same few values over and over")
        self.forms.extend(kept)

    def _add_short(
        self, source: Source, index: int, forms: Iterable[Form], shorts: dict[bytes, str]
    ) -> None:
        kept = [form for form in forms if form.live.any()]
        if not kept:
            self._cannot(source, index, "it is the same few values over and over")
        for form in kept:
            shorts.setdefault(form.data, form.kind)

    def _take_vectors(self, vectors: NDArray[np.float32]) -> None:
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise InputError(
                f"vectors of shape {vectors.shape}, or not finite.", "Give a table: rows, dim."
            )
        if vectors.size < NUMBERS:
            self._cannot("vector", 0, f"only {vectors.size} numbers; {NUMBERS} are needed")
        else:
            self._add("vector", 0, vector_forms(vectors))

    def _take_texts(
        self, texts: list[str], background: Iterable[str], shorts: dict[bytes, str]
    ) -> None:
        """Every variant of every text, less what the background holds."""
        long = [(i, variants_of(t)) for i, t in enumerate(texts) if len(t) >= FRAGMENT]
        brief = {i: t for i, t in enumerate(texts) if len(t) < FRAGMENT}
        rows = [
            (i, n, v, _grams(codes_of(v)), live_fragments(codes_of(v), FRAGMENT))
            for i, variants in long
            for n, v in enumerate(variants)
            if len(v) >= FRAGMENT
        ]
        wanted = HashSet(np.concatenate([row[3] for row in rows] or [np.zeros(0, np.uint64)]))
        known: list[Words] = []
        folded = {i: normalise(t) for i, t in brief.items()}
        shared: set[int] = set()
        for text in background:
            for variant in variants_of(text):
                grams = _grams(codes_of(variant))
                known.append(np.unique(grams[wanted.which(grams)]))
            if len(shared) < len(folded):
                whole = normalise(text)
                shared.update(i for i, t in folded.items() if t in whole)
        held = HashSet(np.concatenate(known or [np.zeros(0, np.uint64)]))
        for i, n, variant, grams, live in rows:
            live[held.which(grams)] = False
            if n == 0:
                self.fragments += int(live.sum())
                self.dropped += int((~live).sum())
                if not live.any():
                    self._cannot("text", i, "retained texts hold all of it, or it is trivial")
            if live.any():
                self.forms.extend(text_forms(variant, live, FRAGMENT))
        for i, text in brief.items():
            if len(text) < _SHORT_TEXT:
                self._cannot("text", i, f"only {len(text)} characters; {_SHORT_TEXT} are needed")
            elif i in shared:
                self._cannot("text", i, "a retained text holds it")
            else:
                for variant in variants_of(text):
                    if len(variant) >= _SHORT_TEXT:
                        live = live_fragments(codes_of(variant), len(variant))
                        self._add_short("text", i, text_forms(variant, live, len(variant)), shorts)

    def _index(self) -> None:
        hashes, owners, places = [], [], []
        for i, form in enumerate(self.forms):
            at = form.windows()
            if len(at):
                hashes.append(hash_windows(*_words_at(form.data, at)))
                owners.append(np.full(len(at), i, np.int32))
                places.append(at)
        if hashes:
            every = np.concatenate(hashes)
            order = np.argsort(every, kind="stable")
            self.hashes = every[order]
            self.owners, self.places = np.concatenate(owners)[order], np.concatenate(places)[order]
        self._starts = np.cumsum([STEP] + [len(form.data) + STEP for form in self.forms])
        joined = b"".join(b"\0" * STEP + form.data for form in self.forms) + b"\0" * 2 * STEP
        self._beside = np.lib.stride_tricks.sliding_window_view(
            np.frombuffer(joined, np.uint8), STEP
        )
        self.table = HashSet(self.hashes)
