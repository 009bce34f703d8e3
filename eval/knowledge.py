"""Does an answer hold what was asked for: keys, and tables of right answers.

Guarantees: a key counts only as whole words, compared after NFKC and case folding with white space
as one blank. It does not understand: "not Anna" holds the key "Anna", so choose keys that a wrong
answer would not hold, and read the table beside that of a model that never had the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_unlearn.documents import normalise
from llm_unlearn.errors import InputError
from llm_unlearn.eval.summary import Estimate, wilson


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the keys that a right answer holds, and the group it is counted in."""

    question: str
    keys: tuple[str, ...]
    group: str = ""


def holds_keys(answer: str, keys: Sequence[str]) -> bool:
    """Whether every key occurs in the answer as whole words.

    A word ends where a letter, digit or underscore meets something else, so "1984" is not in
    "19845" and "Ann" not in "Anna", but "Anna" is in "Anna's". Keys of scripts without blanks
    between words (Chinese, Japanese, Thai) must stand alone to be found.

    >>> holds_keys("It was ANNA  Weiss, in 1984.", ["anna weiss", "1984"])
    True
    >>> holds_keys("It was Annabel.", ["Anna"])
    False

    Raises:
        InputError: no keys, or an empty one, which any answer would hold; one string for a list.
    """
    if isinstance(keys, str):
        raise InputError(f"the keys are one string, {keys[:40]!r}.", "Give a list of strings.")
    if not keys:
        raise InputError("no keys were given.", "Give at least one that a right answer holds.")
    text = normalise(answer)
    for key in keys:
        wanted = normalise(key)
        if not wanted:
            raise InputError(f"the key {key!r} is empty.", "Every answer would hold it: remove it.")
        if not re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text):
            return False
    return True


def right(questions: Sequence[Question], answers: Sequence[str]) -> list[bool]:
    """For each question, whether its answer holds all its keys.

    Raises:
        InputError: not one answer a question; see also `holds_keys`.
    """
    if len(questions) != len(answers):
        raise InputError(
            f"{len(questions)} questions but {len(answers)} answers.", "Give one a question."
        )
    return [holds_keys(a, q.keys) for q, a in zip(questions, answers, strict=True)]


def accuracy(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Estimate]:
    """Share of right answers in each group, with Wilson intervals; all groups together as "all".

    1 of 2 right in group a and 1 of 1 in b: a 1/2, b 1, all 2/3.

    Raises:
        InputError: no questions, a group named "all", or as `right`.
    """
    if any(q.group == "all" for q in questions):
        raise InputError('a group is named "all".', "Rename it: that is the table's last row.")
    verdicts = right(questions, answers)
    table: dict[str, list[bool]] = {}
    for q, verdict in zip(questions, verdicts, strict=True):
        table.setdefault(q.group, []).append(verdict)
    rows = {name: wilson(sum(v), len(v)) for name, v in sorted(table.items()) if name}
    return {**rows, "all": wilson(sum(verdicts), len(verdicts))}
