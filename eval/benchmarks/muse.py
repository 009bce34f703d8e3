"""MUSE, machine unlearning six-way evaluation (Shi et al. 2024): three of its six ways by formula.

Guarantees: verbatim memorization and knowledge memorization score as the published code (mean ROUGE-L
F1 without stemming, times 100); PrivLeak has the published sign and scale. Utility is knowledge
memorization on the retain set; scalability and sustainability are these scores over larger and
repeated requests, for the caller to plot. The answers are the caller's: greedy, at most 128 new
tokens (verbatim) or 32 (knowledge, after the published in-context examples).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.eval.benchmarks.rows import read_rows
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.summary import Estimate, bootstrap


def load_verbatim(path: Path | str) -> list[tuple[str, str]]:
    """Prompt and true continuation of each row of a `verbmem` file (fields prompt, gt)."""
    return [(row["prompt"], row["gt"]) for row in read_rows(path, ("prompt", "gt"))]


def load_questions(path: Path | str) -> list[tuple[str, str]]:
    """Question and answer of each row of a `knowmem` file."""
    return [(row["question"], row["answer"]) for row in read_rows(path, ("question", "answer"))]


def question_prompt(question: str, examples: Sequence[tuple[str, str]]) -> str:
    """The in-context prompt for knowledge: worked examples, then the question."""
    shown = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in examples)
    return f"{shown}Question: {question}\nAnswer: "


def memorized(answers: Sequence[str], references: Sequence[str], *, seed: int = 0) -> Estimate:
    """VerbMem or KnowMem: 100 times the mean ROUGE-L F1, with a bootstrap interval.

    "the cat sat" for "the cat was on the mat" (F1 4/9) and a perfect one: 100 * (4/9 + 1) / 2.

    Raises:
        InputError: no answers, or not one a reference.
    """
    if len(answers) != len(references):
        raise InputError(
            f"{len(answers)} answers but {len(references)} references.", "Give one a row."
        )
    f1 = [rouge_l(a, r).f1 for a, r in zip(answers, references, strict=True)]
    return bootstrap(100 * np.array(f1), seed=seed)


def priv_leak(auc_now: float, auc_never_had: float) -> float:
    """PrivLeak from AUCs with the forgotten texts as members and higher meaning member.

    MUSE counts the AUC the other way round, A' = 1 - A, and reports 100 * (A' - A'0) / A'0 with A'0
    that of the retrained model: -100 where everything leaks, 0 at the retrained model, positive
    where forgetting went so far that it shows. Unbounded above: report the AUCs beside it.

    AUC 1 now, 0.5 never-had: 100 * (0 - 0.5) / 0.5 = -100. AUC 0: +100.

    Raises:
        InputError: an AUC outside [0, 1], or a never-had AUC of 1, for which it is not defined.
    """
    if not 0 <= auc_now <= 1 or not 0 <= auc_never_had < 1:
        raise InputError(
            f"AUC {auc_now} and never-had AUC {auc_never_had}.", "Give 0 to 1, the second below 1."
        )
    return 100 * ((1 - auc_now) - (1 - auc_never_had)) / (1 - auc_never_had)
