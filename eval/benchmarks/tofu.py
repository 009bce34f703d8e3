"""TOFU, a Task of Fictitious Unlearning (Maini et al. 2024), by its published files and formulas.

Guarantees: forget quality and model utility aggregate as the published code does (KS test on truth
ratios with geometric means; harmonic mean of nine; ROUGE-L recall with Porter stemming). Losses are
per answer token by character offsets. It differs from the published code where that errs: prompt
tokens swallowed by tokenization are not scored, and the end token is no part of an answer, so
probabilities differ slightly from published tables; compare runs of one code only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.eval.benchmarks.rows import read_rows
from llm_unlearn.eval.encoding import Encoded, encode_pairs
from llm_unlearn.eval.memorization import loss
from llm_unlearn.eval.passes import score_tokens
from llm_unlearn.eval.truth_ratio import Purpose, truth_ratio, truth_score

PER_AUTHOR = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One question; `paraphrase` is the answer itself and `perturbed` empty where not published."""

    question: str
    answer: str
    paraphrase: str
    perturbed: tuple[str, ...]


def load(path: Path | str) -> list[Row]:
    """Rows of any TOFU file (`full.json`, `forget10_perturbed.json`...), by path or hub file
    (`locuslab/TOFU:full.json`).

    Raises:
        NotFound, InputError: see `rows.read_rows`.
    """
    rows = []
    for number, row in enumerate(read_rows(path, ("question", "answer")), 1):
        wrong = row.get("perturbed_answer", [])
        question, answer = row["question"], row["answer"]
        other = row.get("paraphrased_answer", answer)
        texts = (question, answer, other)
        if not isinstance(wrong, list) or not all(isinstance(t, str) for t in (*texts, *wrong)):
            raise InputError(
                f"{path}, row {number} has a question or answer that is no text, or perturbed "
                "answers that are no list of texts.",
                "Is it the file of another benchmark?",
            )
        rows.append(Row(question, answer, other, tuple(wrong)))
    return rows


def authors(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of a TOFU split by author, 20 each, in order."""
    return [list(rows[i : i + PER_AUTHOR]) for i in range(0, len(rows), PER_AUTHOR)]


def prompt(question: str) -> str:
    """The published prompt for models without a chat template."""
    return f"Question: {question}\nAnswer: "


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses per answer token of each row: right answer, its paraphrase, wrong answers.

    Shapes (rows,), (rows,) and a tuple of (wrong,) arrays, float64 nats.
    """

    answer: NDArray[np.float64]
    paraphrase: NDArray[np.float64]
    perturbed: tuple[NDArray[np.float64], ...]

    def ratios(self) -> NDArray[np.float64]:
        """Truth ratio of each row with geometric means, as the published code."""
        pairs = zip(self.paraphrase, self.perturbed, strict=True)
        return np.array([truth_ratio(float(p), w.tolist(), "geometric") for p, w in pairs])


def losses(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    batch_size: int = 8,
    encode: Callable[[Any, Sequence[tuple[str, str]]], list[Encoded]] | None = None,
) -> Losses:
    """Score all answers of all rows, one pass each.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: from a `*_perturbed` file.
        batch_size: most answers a batch.
        encode: how question and answer become tokens, such as `encoding.encode_chats`; by default
            the published prompt for models without a chat template.

    Raises:
        InputError: a row without perturbed answers.
    """
    bare = [i for i, row in enumerate(rows) if not row.perturbed]
    if bare:
        raise InputError(
            f"row {bare[0]} has no perturbed answers.", "Load the *_perturbed.json file."
        )
    texts = [(r.question, a) for r in rows for a in (r.answer, r.paraphrase, *r.perturbed)]
    encoded = (
        encode(tokenizer, texts)
        if encode is not None
        else encode_pairs(tokenizer, [(prompt(q), a) for q, a in texts])
    )
    given = iter([(e.ids, e.mask) for e in encoded])
    return losses_of_ids(
        model, [list(islice(given, 2 + len(r.perturbed))) for r in rows], batch_size=batch_size
    )


def losses_of_ids(
    model: Any,
    rows: Sequence[Sequence[tuple[Sequence[int], Sequence[bool]]]],
    *,
    batch_size: int = 8,
) -> Losses:
    """`losses` of rows given as token ids and loss mask of each text.

    A row's texts are the question with the right answer, with its paraphrase, and with each wrong
    answer; the loss is the mean of -ln p over the masked tokens (p = 1/2, 1/8: 2 ln 2).

    Raises:
        InputError: a row of fewer than three texts; as `passes.score_tokens`.
    """
    bare = [i for i, row in enumerate(rows) if len(row) < 3]
    if bare:
        raise InputError(
            f"row {bare[0]} has {len(rows[bare[0]])} texts.",
            "Give the right answer, its paraphrase and at least one wrong answer.",
        )
    ids, masks = [i for row in rows for i, _ in row], [m for row in rows for _, m in row]
    values = iter([loss(s) for s in score_tokens(model, ids, masks, batch_size)])
    parts = [np.array(list(islice(values, len(row)))) for row in rows]
    return Losses(
        np.array([p[0] for p in parts]),
        np.array([p[1] for p in parts]),
        tuple(p[2:] for p in parts),
    )


def rouge_recall(candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L recall with Porter stemming, by the library that the published code uses.

    Raises:
        EnvironmentFailure: `rouge_score` is not installed.
    """
    try:
        from rouge_score import rouge_scorer  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise EnvironmentFailure(
            "the published ROUGE needs rouge_score.", "pip install rouge-score"
        ) from error
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return [
        float(scorer.score(reference, candidate)["rougeL"].recall)
        for candidate, reference in zip(candidates, references, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Task:
    """The three published scores of one split, each a mean in [0, 1]."""

    probability: float
    rouge: float
    truth_ratio: float


def task(found: Losses, rouge: Sequence[float], *, options: bool, forget: bool = False) -> Task:
    """Aggregate one split.

    `options`: for real authors and world facts the probability is that of the right answer among
    right and wrong ones. Losses ln 2 (right) and ln 4 (wrong): (1/2) / (1/2 + 1/4) = 2/3; without
    options 1/2.
    """
    right = np.exp(-found.answer)
    if options:
        every = right + np.array([np.exp(-w).sum() for w in found.perturbed])
        right = right / every
    purpose: Purpose = "forgotten" if forget else "kept"
    return Task(
        float(right.mean()),
        float(np.mean(rouge)),
        float(np.mean([truth_score(float(r), purpose) for r in found.ratios()])),
    )


def model_utility(retain: Task, real_authors: Task, world_facts: Task) -> float:
    """Harmonic mean of the nine scores; eight of 1 and one of 1/2: 9 / (8 + 2) = 0.9; a 0: 0."""
    nine = np.array(
        [
            value
            for t in (retain, real_authors, world_facts)
            for value in (t.probability, t.rouge, t.truth_ratio)
        ]
    )
    return float(len(nine) / (1 / nine).sum()) if (nine > 0).all() else 0.0


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """Two-sample KS test of truth ratios: p-value (higher: more like never-had) and statistic."""

    p_value: float
    statistic: float


def forget_quality(unlearned: ArrayLike, never_had: ArrayLike) -> ForgetQuality:
    """KS test between the truth ratios on the forget set of the two models (`Losses.ratios`).

    Equal samples: p = 1, statistic 0. 1, 2 against 3, 4: the distribution functions differ by 1 at
    2, and 2 of the 6 ways to part four values are as far apart: p = 1/3.

    Raises:
        EnvironmentFailure: scipy is not installed.
    """
    try:
        from scipy.stats import ks_2samp  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise EnvironmentFailure("the KS test needs scipy.", "pip install scipy") from error
    made = ks_2samp(np.asarray(unlearned, np.float64), np.asarray(never_had, np.float64))
    return ForgetQuality(float(made.pvalue), float(made.statistic))
