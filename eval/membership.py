"""Was this text in the training data? Scores a text, and how well the scores tell members apart.

Guarantees: every score has the same sign, higher means member; each that needs no gradient, no
changed text and no second model comes from the one pass of `passes`. A text of any length has a
Min-K% score (at least one token counts). AUC counts ties as one half; a true positive rate at a
false positive rate uses only thresholds that the non-members allow, without interpolation.

It does not say that a model remembers: if a blind baseline that never asks the model tells the two
groups apart (`blind_scores`), the groups differ, and any attack's AUC shows no more than that. With
fewer than 1000 non-members the rate at 0.1% is the rate at no false positive at all.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import TokenScores
from llm_unlearn.eval.summary import Estimate, bootstrap_statistic

Values = NDArray[np.float64]

_CERTAIN = 2.0**-24  # nats: what float32 cannot tell from a loss of 0
_FLAT, _OFF = 1e-6, 1e-3  # a std that says nothing; a gap that is no rounding


def loss_score(scores: TokenScores) -> float:
    """Mean log-probability, that is -loss (Yeom et al. 2018). p = 1/2, 1/8: -2 ln 2 = -1.386."""
    return float(_logp(scores).mean())


def zlib_score(scores: TokenScores, text: str) -> float:
    """-loss divided by the bytes of the zlib-compressed text (Carlini et al. 2021).

    A text hard to compress and still likely was probably seen. -1.386 and 20 bytes: -0.0693.
    """
    return loss_score(scores) / len(zlib.compress(text.encode("utf-8", "surrogatepass")))


def min_k_score(scores: TokenScores, share: float = 0.2) -> float:
    """Mean log-probability of the least likely `share` of the tokens (Min-K%: Shi et al. 2024).

    Of n tokens max(1, floor(share * n)) count. logp -1, -2, -3, -4 with 0.5: (-3 - 4) / 2 = -3.5;
    with 0.2: -4.
    """
    return _lowest(_logp(scores), share)


def min_k_plus_score(scores: TokenScores, share: float = 0.2) -> float:
    """Min-K%++ (Zhang et al. 2025): as Min-K%, of (logp - mean) / std at each position.

    mean and std are those of log p(z) under the model's own distribution there. Where the model is
    certain or knows nothing (std below 1e-6) every likely token has the mean itself, and the value
    is 0; a token that it is certain against is off the mean all the same, and std counts as 1e-6.
    logp -1 with mean -2, std 0.5: 2. logp 0, mean 0, std 0: 0. logp -40, mean 0, std 0: -4e7.
    """
    std = scores.std.astype(np.float64)
    gap = _logp(scores) - scores.mean.astype(np.float64)
    # Below float32's noise a std says nothing and would only blow rounding up.
    rounding = (std < _FLAT) & (np.abs(gap) < _OFF)
    return _lowest(np.where(rounding, 0.0, gap / np.maximum(std, _FLAT)), share)


def reference_score(scores: TokenScores, reference: TokenScores) -> float:
    """Mean log-probability less that of a reference model (Carlini et al. 2021).

    -1.4 against -2.4: 1.

    Raises:
        InputError: the two did not score the same tokens.
    """
    if not np.array_equal(scores.ids, reference.ids):
        raise InputError(
            "the reference model scored other tokens.", "Both models need one tokenizer and mask."
        )
    return loss_score(scores) - loss_score(reference)


def recall_score(scores: TokenScores, after_prefix: TokenScores) -> float:
    """ReCaLL (Xie et al. 2024): loss after a prefix of non-members over the loss without it.

    `after_prefix` scores the same tokens with non-member texts before them, which disturbs members
    more. Loss 3 after the prefix and 2 without: 1.5. A loss that float32 cannot tell from 0 counts
    as 2^-24, so a text known for certain scores high: 3 and 0: 5.0e7; 0 and 0: 1.
    """
    plain, after = (max(-loss_score(s), _CERTAIN) for s in (scores, after_prefix))
    return after / plain


def neighbourhood_score(scores: TokenScores, neighbours: Sequence[TokenScores]) -> float:
    """Mean loss of slightly changed texts less the text's own (Mattern et al. 2023).

    Loss 2, neighbours 3 and 4: 3.5 - 2 = 1.5.
    """
    if not neighbours:
        raise InputError("a text has no neighbours.", "Change it slightly, a few times.")
    return loss_score(scores) - float(np.mean([loss_score(n) for n in neighbours]))


def one_pass_scores(
    scores: Sequence[TokenScores], texts: Sequence[str], share: float = 0.2
) -> dict[str, Values]:
    """The four scores that one pass gives, each (texts,): loss, zlib, min_k, min_k_plus."""
    if len(scores) != len(texts):
        raise InputError(f"{len(scores)} scores but {len(texts)} texts.", "Give one a text.")
    return {
        "loss": np.array([loss_score(s) for s in scores]),
        "zlib": np.array([zlib_score(s, t) for s, t in zip(scores, texts, strict=True)]),
        "min_k": np.array([min_k_score(s, share) for s in scores]),
        "min_k_plus": np.array([min_k_plus_score(s, share) for s in scores]),
    }


def swapped_neighbours(text: str, count: int, seed: int = 0, share: float = 0.1) -> list[str]:
    """`count` copies of the text in which a share of the words changed places with the next one.

    None of them is the text itself; one may be another.

    Raises:
        InputError: the text has no two words that differ, or the share is not in (0, 1].
    """
    words = text.split(" ")
    unlike = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
    if not unlike:
        raise InputError(
            f"the text {text[:40]!r} has no two words that differ.", "It has no neighbours then."
        )
    if not 0 < share <= 1:
        raise InputError(f"share {share} is not in (0, 1].", "0.1 is usual.")
    swaps = min(max(1, round(share * len(words))), len(words) - 1)
    random = np.random.Generator(np.random.PCG64(seed))
    made = []
    for _ in range(count):
        copy = list(words)
        for i in random.choice(len(words) - 1, swaps, False):
            copy[i], copy[i + 1] = copy[i + 1], copy[i]
        if copy == words:  # only equal words changed places
            i = unlike[random.integers(len(unlike))]
            copy[i], copy[i + 1] = copy[i + 1], copy[i]
        made.append(" ".join(copy))
    return made


def auc(members: ArrayLike, others: ArrayLike) -> float:
    """Probability that a member scores higher than a non-member, ties counting one half.

    Members 3, 1 and others 2, 0: of the four pairs 3>2, 3>0, 1>0 are right: 0.75.
    """
    a, b = _scores(members), np.sort(_scores(others))
    below = np.searchsorted(b, a, side="left")
    up_to = np.searchsorted(b, a, side="right")
    return float((below + up_to).sum() / (2 * len(a) * len(b)))


def roc(members: ArrayLike, others: ArrayLike) -> tuple[Values, Values]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1), for a plot."""
    a, b = np.sort(_scores(members)), np.sort(_scores(others))
    thresholds = np.unique(np.concatenate([a, b]))[::-1]
    fpr = (len(b) - np.searchsorted(b, thresholds, side="left")) / len(b)
    tpr = (len(a) - np.searchsorted(a, thresholds, side="left")) / len(a)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def tpr_at_fpr(members: ArrayLike, others: ArrayLike, fpr: float) -> float:
    """Largest true positive rate of a threshold with at most this false positive rate.

    Members 5, 4, 1 and others 3, 2, 0, -1 at 0.25: accepting above 2 has 1 of 4 false, 2 of 3 true:
    2/3; at 0.2 none may be false: above 3, also 2/3.
    """
    false, true = roc(members, others)
    return float(true[false <= fpr].max())


@dataclass(frozen=True, slots=True)
class Attack:
    """How well one score tells members from others, each with a bootstrap interval."""

    auc: Estimate
    tpr_at_1: Estimate
    tpr_at_01: Estimate
    members: int
    others: int


def attack(members: ArrayLike, others: ArrayLike, *, rounds: int = 500, seed: int = 0) -> Attack:
    """Evaluate one score; members and others are resampled each on their own.

    Raises:
        InputError: a group is empty, or a score is not finite.
    """
    groups = [_scores(members), _scores(others)]
    at_1, at_01 = (
        bootstrap_statistic(
            lambda a, b, rate=rate: tpr_at_fpr(a, b, rate), groups, rounds=rounds, seed=seed
        )
        for rate in (0.01, 0.001)
    )
    return Attack(
        auc=bootstrap_statistic(auc, groups, rounds=rounds, seed=seed),
        tpr_at_1=at_1,
        tpr_at_01=at_01,
        members=len(groups[0]),
        others=len(groups[1]),
    )


def auc_difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    rounds: int = 500,
    seed: int = 0,
) -> Estimate:
    """AUC of one model's scores (members, others) less that of another's, on the same texts.

    Paired: members and others are resampled each on their own, both models with the same draws, so
    what makes a text easy for either falls out. Members 3, 1 and others 2, 0 (0.75) less members
    1, 3 and others 0, 0 (1): -0.25.

    Raises:
        InputError: a group is empty or not as long for the other model; a score is no number.
    """
    one, other = ((_scores(m), _scores(o)) for m, o in (first, second))
    if [len(group) for group in one] != [len(group) for group in other]:
        raise InputError("the two models scored other texts.", "Give the same texts to both.")

    def gap(i: Values, j: Values) -> float:
        mine, theirs = i.astype(int), j.astype(int)
        a, b = (auc(side[0][mine], side[1][theirs]) for side in (one, other))
        return a - b

    places = [np.arange(len(group), dtype=np.float64) for group in one]
    return bootstrap_statistic(gap, places, rounds=rounds, seed=seed)


def distance_to_never_had(auc_now: float, auc_never_had: float) -> float:
    """Two-sided distance |AUC - AUC of never-had|: under- and over-forgetting both count.

    0.9 against 0.55: 0.35; 0.2 against 0.55: 0.35. Bounded by 1, unlike PrivLeak.
    """
    return abs(auc_now - auc_never_had)


def blind_scores(
    members: Sequence[str], others: Sequence[str], *, folds: int = 5, seed: int = 0
) -> tuple[Values, Values]:
    """Scores by words alone, without any model: bag-of-words naive Bayes, out of fold.

    Each text is scored by a multinomial naive Bayes (add-one smoothing) that was fitted on the
    other folds, as log-odds of being a member. Its AUC (see `attack`) should lie near 0.5; if not,
    the two groups can be told apart without the model (Das et al. 2024; Meeus et al. 2025).

    Returns:
        The scores of the members and of the others.

    Raises:
        InputError: a group has fewer texts than there are folds.
    """
    if min(len(members), len(others)) < folds:
        raise InputError(
            f"{len(members)} members and {len(others)} others for {folds} folds.",
            "Give at least one of each a fold.",
        )
    texts = [*members, *others]
    label = np.array([True] * len(members) + [False] * len(others))
    bags = [re.findall(r"\w+", text.casefold()) for text in texts]
    known = {word: i for i, word in enumerate(sorted({w for bag in bags for w in bag}))}
    columns = [np.array([known[w] for w in bag], np.int64) for bag in bags]
    random = np.random.Generator(np.random.PCG64(seed))
    fold = np.empty(len(texts), np.int64)
    for group in (np.flatnonzero(label), np.flatnonzero(~label)):
        fold[random.permutation(group)] = np.arange(len(group)) % folds
    result = np.empty(len(texts))
    for k in range(folds):
        counts = np.ones((2, max(1, len(known))))
        seen = np.zeros(2)
        for i in np.flatnonzero(fold != k):
            np.add.at(counts[int(label[i])], columns[i], 1)
            seen[int(label[i])] += 1
        weights = np.log(counts / counts.sum(1, keepdims=True))
        for i in np.flatnonzero(fold == k):
            odds = weights[1][columns[i]].sum() - weights[0][columns[i]].sum()
            result[i] = odds + np.log(seen[1] / seen[0])
    return result[label], result[~label]


def _logp(scores: TokenScores) -> Values:
    if not len(scores):
        raise InputError("a text has no scored tokens.", "Set its loss mask for the text.")
    return scores.logp.astype(np.float64)


def _lowest(values: Values, share: float) -> float:
    if not 0 < share <= 1:
        raise InputError(f"share {share} is not in (0, 1].", "0.2 is usual.")
    count = max(1, int(share * len(values)))
    return float(np.partition(values, count - 1)[:count].mean())


def _scores(values: ArrayLike) -> Values:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or np.isnan(array).any():
        raise InputError(
            f"scores of shape {array.shape}, or not numbers.", "Give a list with one a text."
        )
    return array
