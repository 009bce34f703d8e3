"""A scan of files for what should be gone: text, token ids, vectors and keys (see `needles`).

Guarantees: every regular file under the given paths is read whole, in overlapping blocks, so files
larger than memory work and a needle across two blocks is found; file names are read too; compressed
streams anywhere in a file are unpacked and looked into, also inside one another, up to `DEPTH`
levels. What could not be read or unpacked is listed by `survey`; `scan` then refuses to answer.

It does not read unallocated blocks of the disk, extended attributes, what symbolic links point to,
or memory; and it reports one finding for a stretch of bytes, not one for every needle in it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llm_unlearn.errors import EnvironmentFailure, NotFound
from llm_unlearn.eval.forms import WINDOW
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.streams import (
    LONGEST,
    SIGNATURES,
    BrokenError,
    Packing,
    Unpacker,
    UnreadableError,
    unpacker,
)

BLOCK = 1 << 22
DEPTH = 3
MOST_FINDINGS = 1000  # a file; what follows in it is not read
_REACH = 512  # bytes compared on either side of a hit: more than any fragment's encoding
_CARRY = 2 * _REACH
_MOST_STREAMS = 64  # unpacked at once, at one level
_FIRST = 256  # bytes on which a false signature shows itself
_STEP = 1 << 14  # words hashed at a time: fits the processor's cache

_FIRSTS = sorted({signature[0] for signature in SIGNATURES})
_BY_PAIR: dict[int, list[bytes]] = {}
for _signature in SIGNATURES:
    _BY_PAIR.setdefault(_signature[0] | _signature[1] << 8, []).append(_signature)
_PAIRS = np.zeros(1 << 16, bool)
_PAIRS[list(_BY_PAIR)] = True


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be there.

    Attributes:
        path: the file; for a file name, the file so named.
        offset: the byte at which it starts; inside a compressed stream, the byte of the file at
            which the outermost stream starts; 0 for a file name.
        kind: needle and encoding ("text/utf-16", "vector/bfloat16", "key/hex"), followed by the
            streams it lies in ("text/utf-8 in zlib in zip") or by "in the file's name".
    """

    path: Path
    offset: int
    kind: str


@dataclass(frozen=True, slots=True)
class Unsearched:
    """A file, or a stream in it, that could not be looked into, and why."""

    path: Path
    reason: str


@dataclass(slots=True)
class Survey:
    """What a scan found, how much it read, and what it could not look into."""

    findings: list[Finding] = field(default_factory=list)
    unsearched: list[Unsearched] = field(default_factory=list)
    files: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _File:
    """Where the findings of one file go."""

    path: Path
    survey: Survey
    findings: int = 0
    reasons: set[str] = field(default_factory=set)

    def found(self, offset: int, kind: str) -> None:
        self.survey.findings.append(Finding(self.path, offset, kind))
        self.findings += 1

    def unsearched(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.add(reason)
            self.survey.unsearched.append(Unsearched(self.path, reason))

    @property
    def full(self) -> bool:
        return self.findings >= MOST_FINDINGS


class _Stream:
    """Watches one stream of bytes, given in parts: the file's own, or one that was unpacked."""

    def __init__(
        self, file: _File, needles: Needles, inside: tuple[Packing, ...] = (), origin: int = 0
    ) -> None:
        self._file, self._needles, self._inside, self._origin = file, needles, inside, origin
        self._carry = b""
        self._seen = 0  # bytes before the carry
        self._covered = -1  # end of the last stretch found
        self._children: list[tuple[Unpacker, _Stream]] = []

    def feed(self, data: bytes) -> None:
        """Look at the next part."""
        buffer = self._carry + data
        old = len(self._carry)
        for start, stop, kind in _fragments(self._needles, buffer, self._covered - self._seen):
            if self._seen + start > self._covered:
                self._found(start, kind)
            self._covered = self._seen + stop
        for start, kind in _wholes(self._needles, buffer, old):
            self._found(start, kind)
        self._open_streams(buffer, old, data)
        self._carry = buffer[-_CARRY:]
        self._seen += len(buffer) - len(self._carry)

    def _found(self, start: int, kind: str) -> None:
        if not self._file.full:
            where = " in ".join((kind, *reversed(self._inside)))
            self._file.found(self._origin if self._inside else self._seen + start, where)

    def _open_streams(self, buffer: bytes, old: int, data: bytes) -> None:
        self._children = [c for c in self._children if self._pass_on(*c, data)]
        for at, packing in _signatures(buffer, old):
            made = unpacker(packing, self._seen + at == 0)
            if len(self._inside) == DEPTH:
                if _is_stream(made, packing, buffer[at : at + _FIRST]):
                    self._file.unsearched(f"streams more than {DEPTH} levels deep")
                continue
            origin = self._origin if self._inside else self._seen + at
            child = _Stream(self._file, self._needles, (*self._inside, packing), origin)
            # Small bites first: most streams, true or false, end soon.
            size, goes_on = _FIRST, True
            while goes_on and at < len(buffer):
                goes_on = self._pass_on(made, child, buffer[at : at + size])
                at, size = at + size, size * 8
            if goes_on and len(self._children) == _MOST_STREAMS:
                self._file.unsearched(f"more than {_MOST_STREAMS} streams open at once")
            elif goes_on:
                self._children.append((made, child))

    def _pass_on(self, made: Unpacker, child: _Stream, data: bytes) -> bool:
        """Give the child what `data` holds; whether its stream goes on."""
        pieces: list[bytes] = []
        size, goes_on = 0, True
        try:
            for piece in made.unpack(data):
                pieces.append(piece)
                size += len(piece)
                if size >= BLOCK:
                    child.feed(b"".join(pieces))
                    pieces, size = [], 0
                if self._file.full:
                    return False
        except UnreadableError as error:
            self._file.unsearched(str(error))
            goes_on = False
        except BrokenError:
            goes_on = False  # a signature by chance, or a damaged stream: its beginning counts
        if pieces:
            child.feed(b"".join(pieces))
        return goes_on and not made.done


def _is_stream(made: Unpacker, packing: Packing, data: bytes) -> bool:
    """Whether `data` begins a real stream: short signatures come by chance, and break soon."""
    got = 0
    try:
        for piece in made.unpack(data):
            got += len(piece)
    except BrokenError:
        return False
    except UnreadableError:
        return True
    # Chance bytes often pass for a few bytes of zlib, but not for its checksum.
    return made.done if packing == "zlib" else made.done or got >= 32


def _fragments(needles: Needles, buffer: bytes, covered: int) -> Iterator[tuple[int, int, str]]:
    """Start, stop and kind of each stretch in `buffer` that holds a fragment, from `covered` on."""
    words = np.frombuffer(buffer, np.uint64, len(buffer) // 8 if len(needles.hashes) else 0)
    for first in range(0, len(words) - 1, _STEP):
        for index, form, place in needles.candidates(words[first : first + _STEP + 1]):
            at = (first + index) * 8
            if at + WINDOW <= covered:
                continue
            after = _alike(buffer[at : at + _REACH], form.data[place : place + _REACH])
            before = _alike(
                buffer[max(0, at - _REACH) : at][::-1],
                form.data[max(0, place - _REACH) : place][::-1],
            )
            if after >= WINDOW and form.proves(place - before, place + after):
                covered = at + after
                yield at - before, at + after, form.kind


def _wholes(needles: Needles, buffer: bytes, old: int) -> Iterator[tuple[int, str]]:
    """Start and kind of each short needle in `buffer` that does not end in its first `old` bytes."""
    if needles.short is not None:
        for index, first, last in needles.short.find_matches_as_indexes(buffer, overlapping=True):
            if last > old:
                yield first, needles.short_kinds[index]


def _signatures(buffer: bytes, old: int) -> Iterator[tuple[int, Packing]]:
    """Where streams start whose signature does not end in the first `old` bytes."""
    octets = np.frombuffer(buffer, np.uint8)
    for start in range(max(0, old - LONGEST), len(buffer) - 1, 8 * _STEP):
        part = octets[start : start + 8 * _STEP + 1]
        first = part[:-1] == _FIRSTS[0]
        for value in _FIRSTS[1:]:
            first |= part[:-1] == value
        at = np.flatnonzero(first)
        pairs = part[at].astype(np.int64) | part[at + 1].astype(np.int64) << 8
        known = _PAIRS[pairs]
        for i, pair in zip(at[known].tolist(), pairs[known].tolist(), strict=True):
            for signature in _BY_PAIR[pair]:
                place = start + i
                if place + len(signature) > old and buffer.startswith(signature, place):
                    yield place, SIGNATURES[signature]


def _alike(one: bytes, two: bytes) -> int:
    """Length of the common beginning."""
    size = min(len(one), len(two))
    if one[:size] == two[:size]:
        return size
    return int((np.frombuffer(one, np.uint8, size) != np.frombuffer(two, np.uint8, size)).argmax())


def _walk(path: Path, result: Survey) -> Iterator[tuple[Path, os.stat_result]]:
    """`path` itself and everything under it, with its state; links are not followed."""
    state = path.stat()
    yield path, state
    if not stat.S_ISDIR(state.st_mode):
        return

    def refused(error: OSError) -> None:
        result.unsearched.append(Unsearched(Path(error.filename), str(error)))

    for folder, folders, files in os.walk(path, onerror=refused):
        folders.sort()
        for name in (*folders, *sorted(files)):
            entry = Path(folder, name)
            try:
                state = entry.lstat()
            except FileNotFoundError:
                continue  # removed since it was listed: it holds nothing now
            yield entry, state


def survey(
    paths: Sequence[Path],
    needles: Needles,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Scan files and directories, and say also what could not be looked into.

    Args:
        paths: files, or directories to be walked; a file met twice is read once.
        needles: what to look for.
        progress: called with (bytes done, bytes in all) after each block.

    Raises:
        NotFound: a path does not exist.
    """
    result = Survey()
    total = 0
    seen: set[tuple[int, int]] = set()
    todo: list[Path] = []
    for path in paths:
        if not path.exists():
            raise NotFound(f"{path} does not exist.", "Name files or directories.")
        for entry, state in _walk(path, result):
            _scan_name(_File(entry, result), needles)
            if stat.S_ISREG(state.st_mode) and (state.st_dev, state.st_ino) not in seen:
                seen.add((state.st_dev, state.st_ino))
                todo.append(entry)
                total += state.st_size
    for path in todo:
        file = _File(path, result)
        try:
            _scan_file(file, needles, lambda: progress and progress(result.bytes, total))
        except FileNotFoundError:
            continue  # removed since it was listed: it holds nothing now
        except OSError as error:
            file.unsearched(str(error))
    return result


def _scan_file(file: _File, needles: Needles, step: Callable[[], object]) -> None:
    with file.path.open("rb", buffering=0) as handle:
        stream = _Stream(file, needles)
        file.survey.files += 1
        while not file.full:
            data = handle.read(BLOCK)
            if not data:
                return
            stream.feed(data)
            file.survey.bytes += len(data)
            step()


def _scan_name(file: _File, needles: Needles) -> None:
    name = os.fsencode(file.path.name)
    kinds = [kind for _, _, kind in _fragments(needles, name, -1)]
    for kind in kinds + [kind for _, kind in _wholes(needles, name, 0)]:
        file.found(0, f"{kind} in the file's name")


def scan(
    paths: Sequence[Path],
    needles: Needles,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Scan files and directories; an empty list means that nothing was found and all was read.

    Raises:
        NotFound: a path does not exist.
        EnvironmentFailure: something could not be looked into (see `survey`).
    """
    result = survey(paths, needles, progress=progress)
    if result.unsearched:
        first, count = result.unsearched[0], len(result.unsearched)
        raise EnvironmentFailure(
            f"{count} file(s) could not be searched; {first.path}: {first.reason}",
            "Make them readable, or use survey, which lists them.",
        )
    return result.findings


def open_files() -> list[Path]:
    """Regular files that this process holds open, deleted ones included, as readable paths.

    Raises:
        EnvironmentFailure: the system has no /proc (only Linux does).
    """
    root = Path("/proc/self/fd")
    if sys.platform != "linux" or not root.is_dir():
        raise EnvironmentFailure("open files can be listed on Linux only.", "Scan the directories.")
    found = []
    for entry in sorted(root.iterdir(), key=lambda p: int(p.name)):
        try:
            state = entry.stat()
        except FileNotFoundError:
            continue  # the descriptor of this listing itself
        if stat.S_ISREG(state.st_mode):
            found.append(entry)
    return found
