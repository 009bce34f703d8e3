"""Closure: find every copy of a text that is to be removed.

Guarantees: a copy with the same letters and digits in the same order is always found, whatever was
done to its case, white space, punctuation, line breaks, Unicode form or diacritics; so is any text
that shares `quotation_words` (10 or more) consecutive words with one text of the request.
Candidates are streamed: one is held at a time, nothing is written, and what is built from the
request dies with the call. The same input gives the same answer in every process.

Does not guarantee: to find translations, summaries and paraphrases. Those whose vectors lie close
are flagged for people; where they lie less close, a document is looked at sentence by sentence, and a
conversation turn by turn (`meaning`). Measured rates stand in docs/closure.md. A text of fewer than
`SEED` letters is compared whole only: a name inside another document is not a copy of it.

How: texts are folded to bare letters (`overlap.fold`). Every run of `SEED` letters of the request
is indexed, and a candidate that holds enough of them, or enough in a row, is compared in full: word
shingles (Jaccard index: Broder 1997) and shared passages (`overlap.Tiler`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.documents import normalise
from llm_unlearn.takedown.meaning import Sentences
from llm_unlearn.takedown.overlap import Folded, Passage, Tiler, fold, jaccard, shingles

Kind: TypeAlias = Literal["exact", "near-duplicate", "quotation", "paraphrase"]

SEED: Final = 8
"""Letters in a row that make a candidate worth a look."""
_STRIDE: Final = 3
"""Only every so many-th place of a candidate is looked up; all of the request's are indexed."""
_SUSPECT: Final = 0.2
"""Share of the shorter text's seeds that a candidate must hold to be compared in full."""
_FEW: Final = 3
"""Seeds that a text must share where the candidate as a whole looks copied."""
_PIECE: Final = 6
"""Fewest words of a passage that counts towards a run put together from several texts."""
_PART: Final = 8
"""Fewest words of a passage that counts wherever it stands, as in an interleaved copy."""
_GAP: Final = 12
"""Letters between two pieces of one run."""
_DENSE: Final = 0.75
"""Share of a passage's letters that must agree for it to count; the rest is scanning noise."""


class Thresholds(Protocol):
    """What counts as a copy; `TakedownConfig` has these."""

    @property
    def near_duplicate(self) -> float:
        """Least Jaccard index of word shingles."""

    @property
    def noisy(self) -> float:
        """Least share of the longer text's letters that lie in shared passages."""

    @property
    def containment(self) -> float:
        """Least share of the shorter text that the other one holds."""

    @property
    def quotation_words(self) -> int:
        """Words that make a quotation, wherever it stands."""

    @property
    def shingle_words(self) -> int:
        """Words in a shingle."""

    @property
    def paraphrase(self) -> float:
        """Least cosine of vectors; flagged only."""

    @property
    def second_look(self) -> float:
        """Least cosine of chunk vectors at which sentences are compared."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that may be a copy.

    Attributes:
        handle: what the caller knows it by.
        text: its content.
        vector_rows: (chunks, dim) float32, unit length; None or no rows if it has no vectors.
        turns: what is said in it, where it is a conversation.
    """

    handle: bytes
    text: str
    vector_rows: NDArray[np.float32] | None = None
    turns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """A candidate that is a copy, or may be one.

    Attributes:
        handle: the candidate's.
        kind: the strongest that holds, in the order of `Kind`; a paraphrase is for people to judge.
        score: what reached the threshold, in [0, 1]: 1 (exact), Jaccard index or share of letters
            (near-duplicate), share of the shorter text (quotation), cosine (paraphrase).
        group: which request, an element of `groups`.
        text: index of the request text that it matches best; None for a paraphrase.
        passages: what it shares with that text, `a` in the request text and `b` in the candidate;
            empty for a paraphrase. Whole sentences at least, unless the text is shorter.
    """

    handle: bytes
    kind: Kind
    score: float
    group: int
    text: int | None
    passages: tuple[Passage, ...]


def find_copies(
    request_texts: Sequence[str],
    candidates: Iterable[Candidate],
    *,
    config: Thresholds,
    request_vectors: NDArray[np.float32] | None = None,
    groups: Sequence[int] | None = None,
    vector_groups: Sequence[int] | None = None,
    embed: Callable[[Sequence[str]], NDArray[np.float32]] | None = None,
) -> Iterator[Match]:
    """Yield every candidate that is or may be a copy, in the order of `candidates`.

    Args:
        request_texts: the texts to be removed.
        candidates: the documents to look through; those of the request itself left out, since
            they would match.
        config: the thresholds.
        request_vectors: (rows, dim) float32 unit vectors of the request's chunks; without them no
            paraphrase is looked for.
        groups: for each text which request it belongs to, when several are closed at once. What a
            candidate takes from several texts of one group counts together. Default: all one, 0.
        vector_groups: the same for each row of `request_vectors`.
        embed: gives the unit vectors (n, dim) of sentences and turns; without it there is no second look.
    """
    groups = list(groups) if groups is not None else [0] * len(request_texts)
    searcher = _Searcher(request_texts, groups, config)
    vectors = None
    if request_vectors is not None and len(request_vectors):
        of_row = list(vector_groups) if vector_groups is not None else [0] * len(request_vectors)
        vectors = _Vectors(request_vectors, of_row, config)
        if embed is not None:
            vectors.sentences = Sentences(request_texts, groups, config.paraphrase, embed)
            vectors.embed = embed
    for candidate in candidates:
        copies = searcher.copies(candidate)
        yield from copies
        if vectors is not None:
            found = {match.group for match in copies}
            yield from (m for m in vectors.close(candidate) if m.group not in found)


class _Text:
    """One text, with what it takes to compare it."""

    def __init__(self, text: str, config: Thresholds) -> None:
        self.folded = fold(text)
        self.config = config

    @cached_property
    def tiler(self) -> Tiler:
        return Tiler(self.folded)

    @cached_property
    def shingles(self) -> set[str]:
        return shingles(self.folded.words, self.config.shingle_words)

    @cached_property
    def runs(self) -> set[str]:
        """All runs of as many words as make a quotation."""
        size = self.config.quotation_words
        return shingles(self.folded.words, size) if len(self.folded.words) >= size else set()


class _Searcher:
    """The texts of the request, indexed for letters in common."""

    def __init__(self, texts: Sequence[str], groups: Sequence[int], config: Thresholds) -> None:
        self.config = config
        self.groups = groups
        self.texts = [_Text(text, config) for text in texts]
        self.lengths = np.array([len(text.folded.letters) for text in self.texts], dtype=np.int64)
        self.exact: dict[str, list[int]] = defaultdict(list)
        owners: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(self.texts):
            self.exact[_whole(text.folded)].append(number)
            letters = text.folded.letters
            for seed in {letters[i : i + SEED] for i in range(len(letters) - SEED + 1)}:
                owners[seed].append(number)
        self.owners = {seed: np.array(found, dtype=np.int64) for seed, found in owners.items()}
        # A run of so many words has at least as many letters, and this many places looked up.
        self.streak = max(1, (config.quotation_words - SEED + 1) // _STRIDE)

    def copies(self, candidate: Candidate) -> list[Match]:
        """At most one match for each group."""
        text = _Text(candidate.text, self.config)
        matches: dict[int, Match] = {}
        for number in self.exact.get(_whole(text.folded), ()):
            group = self.groups[number]
            if group not in matches:
                shared = tuple(self.texts[number].tiler.passages(text.folded))
                matches[group] = Match(candidate.handle, "exact", 1.0, group, number, shared)
        suspects: dict[int, list[int]] = defaultdict(list)
        for number in self._suspects(text.folded.letters):
            if self.groups[number] not in matches:
                suspects[self.groups[number]].append(number)
        for group, numbers in suspects.items():
            match = self._compare(candidate.handle, text, group, numbers)
            if match is not None:
                matches[group] = match
        return [matches[group] for group in sorted(matches)]

    def _suspects(self, letters: str) -> list[int]:
        """Texts that share enough seeds with a candidate to be worth comparing."""
        hits: list[NDArray[np.int64]] = []
        balance = peak = 0  # hits less misses since the best place to start counting (Page 1954)
        for i in range(0, len(letters) - SEED + 1, _STRIDE):
            owners = self.owners.get(letters[i : i + SEED])
            if owners is None:
                balance = max(0, balance - 1)
                continue
            hits.append(owners)
            balance += 1
            peak = max(peak, balance)
        if not hits:
            return []
        counts = np.bincount(np.concatenate(hits), minlength=len(self.lengths))
        shorter = np.minimum(self.lengths, len(letters))
        enough = (counts > 0) & (counts * _STRIDE >= _SUSPECT * shorter)
        if peak >= self.streak:
            enough |= counts >= min(_FEW, self.streak)
        return [int(number) for number in np.flatnonzero(enough)]

    def _compare(
        self, handle: bytes, text: _Text, group: int, numbers: Sequence[int]
    ) -> Match | None:
        """Compare a candidate with the suspected texts of one group."""
        best: tuple[int, float, int] | None = None  # rank of the kind (lower wins), -score, text
        shared: dict[int, list[Passage]] = {}
        for number in numbers:
            wanted = self.texts[number]
            kept = _distinct(
                p for p in wanted.tiler.passages(text.folded) if self._counts(p, wanted)
            )
            shared[number] = kept
            judged = self._judge(wanted, text, kept)
            if judged is not None:
                found = (judged[0], -judged[1], number)
                best = found if best is None else min(best, found)
        if best is None:
            best = self._together(text, shared)
        if best is None:
            return None
        rank, score, number = best
        kind: Kind = "near-duplicate" if rank == 0 else "quotation"
        return Match(handle, kind, -score, group, number, tuple(shared[number]))

    def _counts(self, passage: Passage, wanted: _Text) -> bool:
        """Whether a passage is more than a turn of phrase."""
        least = min(self.config.shingle_words, len(wanted.folded.words))
        return passage.words >= least and passage.agreement >= _DENSE

    def _judge(self, a: _Text, b: _Text, shared: list[Passage]) -> tuple[int, float] | None:
        """(0, score) for a near-duplicate, (1, score) for a quotation, None for neither."""
        config = self.config
        index = jaccard(a.shingles, b.shingles)
        if index >= config.near_duplicate:
            return 0, index
        size_a, size_b = len(a.folded.letters), len(b.folded.letters)
        agree_a = _covered(((t.a, t.length) for p in shared for t in p.tiles), size_a)
        agree_b = _covered(((t.b, t.length) for p in shared for t in p.tiles), size_b)
        share = min(agree_a, agree_b) / max(size_a, size_b)
        if share >= config.noisy:
            return 0, share
        within = max(
            len(a.shingles & b.shingles) / min(len(a.shingles), len(b.shingles)),
            agree_a / size_a if size_a <= size_b else agree_b / size_b,
        )
        words = min(len(a.folded.words), len(b.folded.words))
        if words >= 2 * config.quotation_words // 3 and within >= config.containment:
            return 1, within
        if not a.runs.isdisjoint(b.runs):
            return 1, within
        return None

    def _together(
        self, text: _Text, shared: dict[int, list[Passage]]
    ) -> tuple[int, float, int] | None:
        """A quotation put together from several passages, of one or several texts."""
        config, folded = self.config, text.folded
        kept = [passage for found in shared.values() for passage in found]
        taken = _merged(kept, _PIECE, _GAP)
        run = max((folded.count_words(*stretch) for stretch in taken), default=0)
        parts = _merged([p for p in kept if p.words >= _PART], 0, 0)
        total = sum(folded.count_words(*stretch) for stretch in parts)
        if max(run, total) < config.quotation_words:
            return None
        share = sum(end - start for start, end in taken) / len(folded.letters)
        most = max(shared, key=lambda n: (sum(p.words for p in shared[n]), -n))
        return 1, -min(1.0, share), most


def _distinct(found: Iterable[Passage]) -> list[Passage]:
    """Passages from different places of the request text: a phrase said twice counts once."""
    kept: list[Passage] = []
    for passage in sorted(found, key=lambda p: (-p.words, p.b)):
        start, end = passage.a
        overlap = sum(max(0, min(end, p.a[1]) - max(start, p.a[0])) for p in kept)
        if 2 * overlap <= end - start:
            kept.append(passage)
    return sorted(kept, key=lambda p: p.b)


def _merged(found: Iterable[Passage], least: int, gap: int) -> list[tuple[int, int]]:
    """Stretches of a candidate's letters under passages, those at most `gap` apart as one."""
    spans = sorted(
        (p.tiles[0].b, p.tiles[-1].b + p.tiles[-1].length) for p in found if p.words >= least
    )
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _covered(runs: Iterable[tuple[int, int]], size: int) -> float:
    """How many of `size` letters lie under runs (start, length), each counted once."""
    under = np.zeros(size, dtype=bool)
    for start, length in runs:
        under[start : start + length] = True
    return float(under.sum())


def _whole(folded: Folded) -> str:
    """What exact copies have in common; a text without any letter stands for itself."""
    return folded.letters or "\x00" + normalise(folded.text)


class _Vectors:
    """The vectors of the request."""

    def __init__(
        self, rows: NDArray[np.float32], groups: Sequence[int], config: Thresholds
    ) -> None:
        self.rows = rows  # (rows, dim)
        self.groups = groups  # of each row
        self.least = config.paraphrase
        self.look = config.second_look
        self.sentences: Sentences | None = None
        self.embed: Callable[[Sequence[str]], NDArray[np.float32]] | None = None

    def close(self, candidate: Candidate) -> list[Match]:
        """One match for each group with a vector close to one of the candidate's."""
        if candidate.vector_rows is None or not len(candidate.vector_rows):
            return []
        cosine = (self.rows @ candidate.vector_rows.T).max(axis=1)  # (rows,)
        least = self.least if self.sentences is None else min(self.look, self.least)
        best: dict[int, float] = {}
        for row in np.flatnonzero(cosine >= least).tolist():
            group = self.groups[row]
            best[group] = max(best.get(group, 0.0), min(1.0, float(cosine[row])))
        doubtful = {group for group, score in best.items() if score < self.least}
        turns = self._turns(candidate, doubtful)
        found = []
        for group, score in sorted(best.items()):
            if group in doubtful and self.sentences is not None:
                score = turns.get(group, 0.0)
                if score < self.least:
                    score = self.sentences.score(candidate.text, group)
            if score >= self.least:
                found.append(Match(candidate.handle, "paraphrase", score, group, None, ()))
        return found

    def _turns(self, candidate: Candidate, doubtful: set[int]) -> dict[int, float]:
        """The cosine of the turn closest to each of these groups."""
        if not doubtful or len(candidate.turns) < 2 or self.embed is None:
            return {}
        rows = [row for row, group in enumerate(self.groups) if group in doubtful]
        cosine = (self.rows[rows] @ self.embed(candidate.turns).T).max(axis=1)
        best: dict[int, float] = {}
        for row, score in zip(rows, cosine.tolist(), strict=True):
            group = self.groups[row]
            best[group] = max(best.get(group, 0.0), min(1.0, score))
        return best
