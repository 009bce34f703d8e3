"""How much of a reference text a candidate gives back, on strings. No model, no dependency.

Guarantees: longest common subsequence and edit distance are exact for any length (bit-parallel, so
ten thousand characters take milliseconds); the longest common substring is found in linear time.
It says nothing of meaning: a paraphrase scores low here, and common phrases score above zero, which
is why each value belongs beside that of a model that never had the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Rouge:
    """ROUGE-L of one pair: `recall` over the reference, `precision` over the candidate, `f1`."""

    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, slots=True)
class Match:
    """A shared run: where it starts in candidate and reference, and its length in characters."""

    candidate: int
    reference: int
    length: int


def ascii_words(text: str) -> list[str]:
    """The words of `rouge_score`: lower case, runs of a-z and 0-9 (nothing else counts)."""
    return _WORD.findall(text.lower())


def unicode_words(text: str) -> list[str]:
    """Runs of letters and digits of any script, case folded."""
    return re.findall(r"[^\W_]+", text.casefold())


def lcs_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence (bit-parallel: Hyyrö 2004).

    "abcd" and "acbd": 3, by "abd" or "acd".
    """
    where: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        where[item] = where.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        same = row & where.get(item, 0)
        row = ((row + same) | (row - same)) & full
    return len(a) - row.bit_count()


def rouge_l(
    candidate: str, reference: str, words: Callable[[str], Sequence[str]] = ascii_words
) -> Rouge:
    """ROUGE-L (Lin 2004) over words, without stemming; equal to `rouge_score` by default.

    "the cat sat" against "the cat was on the mat": the longest common subsequence is "the cat", so
    recall 2/6, precision 2/3, F1 = 2 * (2/6) * (2/3) / (2/6 + 2/3) = 4/9. Without words on either
    side all three are 0.
    """
    got, true = words(candidate), words(reference)
    if not got or not true:
        return Rouge(0.0, 0.0, 0.0)
    common = lcs_length(got, true)
    recall, precision = common / len(true), common / len(got)
    return Rouge(recall, precision, 2 * common / (len(got) + len(true)))


def longest_common_substring(candidate: str, reference: str) -> Match:
    """The longest run of characters in both; the first in the candidate among equals.

    "xxabcyy" and "zabcz": "abc", at 2 and 1. By a suffix automaton of the reference.
    """
    follow: list[dict[str, int]] = [{}]
    link, length, first_end = [-1], [0], [0]
    last = 0
    for i, char in enumerate(reference):
        state = len(follow)
        follow.append({})
        length.append(length[last] + 1)
        first_end.append(i + 1)
        link.append(0)
        at = last
        while at >= 0 and char not in follow[at]:
            follow[at][char] = state
            at = link[at]
        if at >= 0:
            target = follow[at][char]
            if length[target] == length[at] + 1:
                link[state] = target
            else:
                clone = len(follow)
                follow.append(dict(follow[target]))
                length.append(length[at] + 1)
                first_end.append(first_end[target])
                link.append(link[target])
                link[target] = link[state] = clone
                while at >= 0 and follow[at].get(char) == target:
                    follow[at][char] = clone
                    at = link[at]
        last = state
    best = Match(0, 0, 0)
    at = run = 0
    for i, char in enumerate(candidate):
        while at and char not in follow[at]:
            at = link[at]
            run = length[at]
        if char in follow[at]:
            at = follow[at][char]
            run += 1
        else:
            run = 0
        if run > best.length:
            best = Match(i + 1 - run, first_end[at] - run, run)
    return best


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance (bit-parallel: Myers 1999, in the form of Hyyrö 2003).

    "kitten" to "sitting": 3.
    """
    if not a:
        return len(b)
    where: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        where[item] = where.get(item, 0) | 1 << i
    full, top = (1 << len(a)) - 1, 1 << (len(a) - 1)
    plus, minus, distance = full, 0, len(a)
    for item in b:
        equal = where.get(item, 0)
        diagonal = (((equal & plus) + plus) ^ plus) | equal | minus
        up = minus | (full & ~(diagonal | plus))
        down = plus & diagonal
        distance += bool(up & top) - bool(down & top)
        up = (up << 1 | 1) & full
        minus = up & diagonal
        plus = (down << 1 & full) | (full & ~(diagonal | up))
    return distance


def edit_similarity(candidate: str, reference: str) -> float:
    """1 - distance / longer length, in [0, 1]; two empty texts are alike (1).

    "kitten" and "sitting": 1 - 3/7 = 0.571.
    """
    longer = max(len(candidate), len(reference))
    return 1.0 if not longer else (longer - edit_distance(candidate, reference)) / longer


def near_verbatim(candidate: str, reference: str, least: float = 0.9) -> bool:
    """Whether the edit similarity reaches `least` (in the sense of Ippolito et al. 2022).

    "0123456789" and "012345678x": 9/10, so yes at 0.9.
    """
    return edit_similarity(candidate, reference) >= least


def common_runs(
    candidate: str,
    reference: str,
    least: int = 3,
    words: Callable[[str], Sequence[str]] = ascii_words,
) -> int:
    """Accumulated common subsequence: words in shared runs of at least `least` words, in order.

    As in CoTaEval (Wei et al. 2024): the longest shared run is taken first, then the same to its
    left and to its right (Ratcliff and Obershelp, as `difflib` does), so runs do not cross; shorter
    runs count nothing.

    "a b c x d e" and "a b c y d e" with 3: only "a b c" is long enough, 3; with 2: 5.
    """
    blocks = SequenceMatcher(None, words(candidate), words(reference), False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size >= least)


@dataclass(frozen=True, slots=True)
class Overlap:
    """All of the above for one pair; `run` counts characters, `accumulated` words."""

    rouge: Rouge
    run: Match
    edit_similarity: float
    accumulated: int


def overlap(candidate: str, reference: str) -> Overlap:
    """ROUGE-L, longest common substring, edit similarity and accumulated runs of one pair."""
    return Overlap(
        rouge=rouge_l(candidate, reference),
        run=longest_common_substring(candidate, reference),
        edit_similarity=edit_similarity(candidate, reference),
        accumulated=common_runs(candidate, reference),
    )
