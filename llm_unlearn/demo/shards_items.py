"""What the sharding experiment asks: the same questions in every cell, so that cells compare pairwise."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from llm_unlearn.eval.benchmarks import tofu

_REWORDED = 20  # authors with published rewordings


@dataclass(frozen=True)
class Item:
    """One question: which set it is of, its answer, and wrong answers to choose among."""

    kind: str
    question: str
    answer: str
    wrong: tuple[str, ...] = ()


def items(data: Path, authors: int, questions: int, per_author: int, utility: int) -> list[Item]:
    """Some questions of each author, as trained and reworded, and some of each utility set.

    Args:
        questions: of each author that train, the first ones; `per_author` of them are asked.
        utility: questions of each utility set.
    """
    full = tofu.authors(tofu.load(data / "full.json"))[:authors]
    with (data / "retain_perturbed.json").open(encoding="utf-8") as lines:
        reworded = {
            (row["question"], row["answer"]): row["paraphrased_question"]
            for row in map(json.loads, lines)
        }
    drawn = random.Random(0)
    found = []
    for number, rows in enumerate(full):
        trained = min(questions, len(rows))
        chosen = sorted(drawn.sample(range(trained), min(per_author, trained)))
        for row in (rows[k] for k in chosen):
            found.append(Item("own", row.question, row.answer.strip()))
            if number < _REWORDED:
                other = reworded[row.question, row.answer]
                found.append(Item("reworded", other, row.answer.strip()))
    for kind, name in (("authors", "real_authors"), ("facts", "world_facts")):
        rows = tofu.load(data / f"{name}_perturbed.json")
        for k in sorted(drawn.sample(range(len(rows)), min(utility, len(rows)))):
            row = rows[k]
            wrong = tuple(text.strip() for text in row.perturbed)
            found.append(Item(kind, row.question, row.answer.strip(), wrong))
    return found
