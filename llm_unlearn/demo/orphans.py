"""Where the questions about a removed subject go: to nobody, or to a stranger's adapter.

Each subject is left out in turn: routing then knows what it would know after the takedown and the
retraining, so nothing need be trained. With refusal on, a question that holds the removed subject's
name (`tombstones.name_runs`) is declined. Guarantees nothing about what the stranger's adapter would
say; it counts who would speak.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from llm_unlearn.config import AnsweringConfig
from llm_unlearn.eval.summary import wilson
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.routing import Standing, nearest, permitted, shares, standing
from llm_unlearn.takedown.overlap import fold
from llm_unlearn.takedown.tombstones import name_runs
from llm_unlearn.workspace import Workspace

_CAPITALS = re.compile(r"\b[A-Z][\w'’-]+(?: (?:[a-z]{1,3} )?[A-Z][\w'’-]+)+")


def author_name(texts: Sequence[str]) -> str:
    """Two or more words in a row with capitals that most of the texts hold; the longest of equals.

    >>> author_name(["Who is Ann Lee?", "Ann Lee wrote The Sea", "Was Ann Lee in New York"])
    'Ann Lee'
    """
    counts: Counter[str] = Counter()
    for text in texts:
        found = set()
        for match in _CAPITALS.findall(text):
            words = re.sub(r"['’]s\b", "", match).split()
            found |= {
                " ".join(words[i:j])
                for i in range(len(words))
                for j in range(i + 2, len(words) + 1)
                if words[i][0].isupper() and words[j - 1][0].isupper()
            }
        counts.update(found)
    return max(counts, key=lambda name: (counts[name], len(name), name), default="")


def names_it(question: str, runs: set[tuple[str, ...]]) -> bool:
    """Whether a question holds one of the runs of a name."""
    words = fold(question).words
    longest = max(map(len, runs), default=0)
    return any(
        words[i : i + n] in runs for n in range(1, longest + 1) for i in range(len(words) - n + 1)
    )


def orphans(
    workspace: Workspace,
    questions: Sequence[Sequence[str]],
    names: Sequence[str],
    vector: Callable[[str], Floats],
) -> dict[str, Any]:
    """Leave out each subject `author-NNN` in turn and count where its questions go.

    Returns:
        Rates with 95% intervals: to a stranger's adapter with refusal off and on; how many questions
        hold the name; how many of the others' questions would be refused with it.
    """
    opened = workspace.opened
    config = AnsweringConfig()
    group = opened.config.retrieval.default_group
    now = standing(opened.states())
    off = on = named = total = wrongly = others = 0
    for number, (mine, name) in enumerate(zip(questions, names, strict=True)):
        mark = opened.vault.mark("subject", f"author-{number:03d}")
        gone = {record.handle for record in opened.vault.records(subject=mark)}
        left = Standing({h: s for h, s in now.covered.items() if h not in gone}, dict(now.serving))
        allowed = permitted(left, {}, (group,), group)
        runs = name_runs(name)
        for question in mine:
            near = nearest(opened.router, vector(question), left, allowed, config.route_neighbours)
            stranger = bool(shares(near, allowed, config))
            holds = names_it(question, runs)
            total += 1
            named += holds
            off += stranger
            on += stranger and not holds
        for other in (q for k, qs in enumerate(questions) if k != number for q in qs):
            wrongly += names_it(other, runs)
            others += 1

    def rate(count: int, of: int) -> dict[str, float]:
        found = wilson(count, of)
        return {"count": count, "of": of, "rate": found.mean, "low": found.low, "high": found.high}

    return {
        "to a stranger, refusal off": rate(off, total),
        "to a stranger, refusal on": rate(on, total),
        "questions that hold the name": rate(named, total),
        "others' questions refused": rate(wrongly, max(1, others)),
        "names": list(names),
    }
