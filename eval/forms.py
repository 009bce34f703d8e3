"""A needle in its encodings: bytes, where each unit lies in them, and which fragments count.

Guarantees: each form is what the encoding really writes (Python's codecs, `json`, `base64`, NumPy's
little-endian numbers, bfloat16 rounded as torch does). What is looked for, and what is not, is said
in `needles`.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.documents import normalise

WINDOW, STEP = 16, 8  # bytes of a sample, and from one sample to the next
FRAGMENT = 24  # characters, or bytes of a key
NUMBERS = 16  # of a vector

_BLANKS = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Form:
    """One needle in one encoding.

    Unit u lies in the bytes from floor((offsets[u] + pad) * num / den) - shift up to
    ceil((offsets[u + 1] + pad) * num / den) - shift of `data`.
    """

    kind: str
    data: bytes
    offsets: NDArray[np.int64]  # (units + 1,)
    needed: int  # units that a match must cover
    gram: int  # units of a fragment; needed is less where an encoding blurs its ends
    live: NDArray[np.bool_]  # (units - gram + 1,): fragments that prove something
    num: int = 1
    den: int = 1
    pad: int = 0
    shift: int = 0

    def span(self, first: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], ...]:
        """The bytes `[start, stop)` of the `count` units from each of `first` on."""
        start = (self.offsets[first] + self.pad) * self.num // self.den - self.shift
        stop = -(-(self.offsets[first + count] + self.pad) * self.num // self.den) - self.shift
        return start, stop

    def proves(self, start: int, stop: int) -> bool:
        """Whether the bytes `[start, stop)` of `data` hold a fragment that proves something."""
        low = -(-(start + self.shift) * self.den // self.num) - self.pad
        high = (stop + self.shift) * self.den // self.num - self.pad
        first = int(np.searchsorted(self.offsets, low, side="left"))
        last = int(np.searchsorted(self.offsets, high, side="right")) - 1  # units [first, last)
        if last - first < self.needed:
            return False
        blur = (self.gram - self.needed) // 2
        return bool(self.live[max(0, first - blur) : last - self.gram + blur + 1].any())

    def windows(self) -> NDArray[np.int64]:
        """Positions in `data` whose windows must be in the table."""
        grams = np.flatnonzero(self.live)
        if not len(grams):
            return grams
        every = np.arange(len(self.live))
        start, stop = self.span(every, self.gram)
        inner = -(-(self.offsets[every] + self.pad) * self.num // self.den)
        inner_stop = (self.offsets[every + self.gram] + self.pad) * self.num // self.den
        least = int((inner_stop - inner).min())  # bytes that only the fragment decides
        # A fragment holds at least `per` samples in a row: one of them lies in the first of every
        # `per` steps of the needle.
        per = max(1, (least - WINDOW + 1) // STEP)
        change = np.zeros(len(self.data) + 1, np.int64)
        np.add.at(change, np.clip(start[grams], 0, len(self.data)), 1)
        np.add.at(change, np.clip(stop[grams], 0, len(self.data)), -1)
        covered = np.concatenate(([0], np.cumsum(np.cumsum(change[:-1]) > 0)))
        at = np.arange(max(0, len(self.data) - WINDOW + 1))
        at = at[at % (STEP * per) < STEP]
        chosen: NDArray[np.int64] = at[covered[at + WINDOW] - covered[at] == WINDOW]
        return chosen


def _trivial(codes: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
    """Which runs of `size` codes have hardly any different ones (fewer than a fifth, or 3)."""
    runs = np.lib.stride_tricks.sliding_window_view(codes, size)
    few = np.empty(len(runs), bool)
    for i in range(0, len(runs), 1 << 16):
        part = np.sort(runs[i : i + (1 << 16)], axis=1)
        few[i : i + len(part)] = (np.diff(part, axis=1) != 0).sum(1) + 1 < max(3, size // 5)
    return few


def codes_of(text: str) -> NDArray[np.uint64]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


def variants_of(text: str) -> list[str]:
    """The text as given, in NFC, with single blanks, and folded; each once."""
    nfc = unicodedata.normalize("NFC", text)
    return list(dict.fromkeys((text, nfc, _BLANKS.sub(" ", nfc).strip(), normalise(text))))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Encodings that encode a string character by character, so that offsets add up. Both byte orders
# have one name, as a run of one holds a run of the other; so have plain and JSON-escaped text.
_ENCODINGS: tuple[tuple[str, Callable[[str], bytes]], ...] = (
    ("utf-8", _utf8),
    ("utf-8", lambda s: _utf8(json.dumps(s, ensure_ascii=False)[1:-1])),
    ("utf-8", lambda s: json.dumps(s).encode()[1:-1]),
    ("utf-16", lambda s: s.encode("utf-16-le", "surrogatepass")),
    ("utf-16", lambda s: s.encode("utf-16-be", "surrogatepass")),
    ("utf-32", lambda s: s.encode("utf-32-le", "surrogatepass")),
    ("hex", lambda s: _utf8(s).hex().encode()),
    ("hex", lambda s: _utf8(s).hex().upper().encode()),
)


def _offsets(units: Sequence[bytes]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum([len(u) for u in units], dtype=np.int64)))


def _base64_forms(
    source: str, raw: bytes, offsets: NDArray[np.int64], gram: int, live: NDArray[np.bool_]
) -> Iterator[Form]:
    """Base64 of `raw` at its three alignments, without the characters that its neighbours share."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for pad in range(3):
            whole = encode(b"\0" * pad + raw)
            first, last = -(-pad * 4 // 3), (pad + len(raw)) * 4 // 3
            data = whole[first:last]
            if encode is base64.urlsafe_b64encode and not re.search(rb"[-_]", data):
                continue
            # The first and the last unit of a fragment share a character with what is beside it.
            yield Form(f"{source}/base64", data, offsets, gram - 2, gram, live, 4, 3, pad, first)


def text_forms(text: str, live: NDArray[np.bool_], gram: int) -> Iterator[Form]:
    """A text in every encoding; `live` says which of its runs of `gram` characters count."""
    alphabet, index = np.unique(codes_of(text), return_inverse=True)
    letters = [chr(int(c)) for c in alphabet]
    seen: set[bytes] = set()
    for name, encode in _ENCODINGS:
        data = encode(text)
        if data in seen:
            continue
        seen.add(data)
        widths = np.array([len(encode(letter)) for letter in letters], np.int64)
        offsets = np.concatenate(([0], np.cumsum(widths[index])))
        yield Form(f"text/{name}", data, offsets, gram, gram, live)
    widths = np.array([len(_utf8(letter)) for letter in letters], np.int64)
    offsets = np.concatenate(([0], np.cumsum(widths[index])))
    yield from _base64_forms("text", _utf8(text), offsets, gram, live)


def live_fragments(codes: NDArray[np.uint64], gram: int) -> NDArray[np.bool_]:
    """Which runs of `gram` codes are not trivial."""
    return ~_trivial(codes, gram)


def token_forms(ids: Sequence[int]) -> Iterator[Form]:
    """Token ids as integers of 2, 4 and 8 bytes, and in decimal, as JSON writes them."""
    codes = np.asarray(ids, np.int64)
    for name, gram in (("<u2", 12), ("<i4", 6), ("<i8", 6)):
        if len(codes) < gram or (name == "<u2" and codes.max() > 0xFFFF):
            continue
        data = codes.astype(name).tobytes()
        width = np.dtype(name).itemsize
        offsets = np.arange(len(codes) + 1) * width
        live = live_fragments(codes.view(np.uint64), gram)
        yield Form(f"tokens/int{8 * width}", data, offsets, gram, gram, live)
    for between in (", ", ","):
        units = [f"{i}{between}".encode() for i in ids]
        if len(units) >= 12:
            live = live_fragments(codes.view(np.uint64), 12)
            yield Form("tokens/decimal", b"".join(units), _offsets(units), 12, 12, live)


def vector_forms(vectors: NDArray[np.float32]) -> Iterator[Form]:
    """Vectors at three precisions, end to end: a run over a row's end is as good a sign as any."""
    flat = np.ascontiguousarray(vectors, np.float32).reshape(-1)
    bits = flat.view(np.uint32)
    # Round to nearest, ties to even, as torch does.
    half = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype("<u2")
    with np.errstate(over="ignore"):
        rows = (
            ("float32", flat.astype("<f4")),
            ("float16", flat.astype("<f2")),
            ("bfloat16", half),
        )
    for name, row in rows:
        offsets = np.arange(len(row) + 1) * row.itemsize
        codes = row.view(f"<u{row.itemsize}").astype(np.uint64)
        live = live_fragments(codes, NUMBERS)
        yield Form(f"vector/{name}", row.tobytes(), offsets, NUMBERS, NUMBERS, live)


def key_forms(key: bytes, gram: int) -> Iterator[Form]:
    """A key raw, in hex and in base64; a match must cover `gram` bytes of it."""
    live = live_fragments(np.frombuffer(key, np.uint8).astype(np.uint64), gram)
    offsets = np.arange(len(key) + 1)
    yield Form("key/raw", key, offsets, gram, gram, live)
    yield Form("key/hex", key.hex().encode(), offsets, gram, gram, live, num=2)
    yield Form("key/hex", key.hex().upper().encode(), offsets, gram, gram, live, num=2)
    yield from _base64_forms("key", key, offsets, gram, live)
