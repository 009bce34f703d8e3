"""Attack scores by hand and against scikit-learn; the attacks on a model that saw its members."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from probe_models import byte_tokenizer, llama, memorize
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.naive_bayes import MultinomialNB

from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import encode_pairs, encode_texts
from llm_unlearn.eval.gradients import gradient_scores
from llm_unlearn.eval.membership import (
    attack,
    auc,
    auc_difference,
    blind_scores,
    distance_to_never_had,
    loss_score,
    min_k_plus_score,
    min_k_score,
    neighbourhood_score,
    one_pass_scores,
    recall_score,
    reference_score,
    roc,
    swapped_neighbours,
    tpr_at_fpr,
    zlib_score,
)
from llm_unlearn.eval.passes import TokenScores, score_encoded, score_tokens


def scores(
    logp: list[float], mean: list[float] | None = None, std: list[float] | None = None
) -> TokenScores:
    n = len(logp)
    whole = np.arange(n)
    return TokenScores(
        whole,
        whole,
        np.array(logp, np.float32),
        np.zeros(n, bool),
        whole,
        np.array(mean or [0.0] * n, np.float32),
        np.array(std or [1.0] * n, np.float32),
        np.zeros((0, n), np.float32),
    )


HALF, EIGHTH = math.log(1 / 2), math.log(1 / 8)


def test_scores_by_hand() -> None:
    """The examples of the docstrings."""
    two = scores([HALF, EIGHTH])
    assert loss_score(two) == pytest.approx(-2 * math.log(2))
    text = "some text or other"
    assert zlib_score(two, text) == pytest.approx(
        -2 * math.log(2) / len(zlib.compress(text.encode()))
    )
    four = scores([-1, -2, -3, -4])
    assert min_k_score(four, 0.5) == pytest.approx(-3.5)
    assert min_k_score(four, 0.2) == -4
    assert min_k_score(scores([-2]), 0.2) == -2  # a short text still has a score
    assert min_k_plus_score(scores([-1], [-2], [0.5])) == pytest.approx(2)
    assert min_k_plus_score(scores([-1], [-1], [0])) == 0
    assert min_k_plus_score(scores([-40], [0], [0])) == pytest.approx(-4e7)
    assert reference_score(scores([-1.4]), scores([-2.4])) == pytest.approx(1)
    assert recall_score(scores([-2]), scores([-3])) == pytest.approx(1.5)
    assert recall_score(scores([0]), scores([-3])) == 3 * 2**24
    assert recall_score(scores([0]), scores([0])) == 1
    assert neighbourhood_score(scores([-2]), [scores([-3]), scores([-4])]) == pytest.approx(1.5)
    assert distance_to_never_had(0.2, 0.55) == pytest.approx(0.35)


def test_a_model_certain_of_another_token_speaks_against_membership() -> None:
    """Its first guess leads by 60 nats: float32 knows no spread, and the target is off the mean."""
    model = llama().eval()
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, 261)
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[7] = 60.0
    mask = [[False, True, True]] * 2
    likely, unlikely = score_tokens(model, [[1, 7, 7], [1, 7, 8]], mask)
    assert min_k_plus_score(likely, 0.5) == 0
    assert min_k_plus_score(unlikely, 0.5) < -1e6


def test_recall_ranks_a_text_known_for_certain_above_one_half_known() -> None:
    assert recall_score(scores([0]), scores([-3])) > recall_score(scores([-2]), scores([-3]))


@given(st.lists(st.floats(-20, -1e-3), min_size=1, max_size=50), st.sampled_from([0.1, 0.2, 1.0]))
def test_min_k_is_the_mean_of_the_sorted_head(logp: list[float], share: float) -> None:
    want = sorted(np.float32(logp).tolist())[: max(1, int(share * len(logp)))]
    assert min_k_score(scores(logp), share) == pytest.approx(sum(want) / len(want), rel=1e-5)


LEVELS = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=20)


@given(LEVELS, LEVELS)
def test_auc_and_roc_equal_scikit_learn(members: list[float], others: list[float]) -> None:
    """Integers make ties."""
    label = [1] * len(members) + [0] * len(others)
    assert auc(members, others) == pytest.approx(roc_auc_score(label, members + others))
    fpr, tpr, _ = roc_curve(label, members + others, drop_intermediate=False)
    got = roc(members, others)
    np.testing.assert_allclose(got[0], fpr)
    np.testing.assert_allclose(got[1], tpr)
    for rate in (0.0, 0.1, 0.5):
        assert tpr_at_fpr(members, others, rate) == pytest.approx(max(tpr[fpr <= rate]))


def test_auc_by_hand() -> None:
    assert auc([3, 1], [2, 0]) == 0.75
    assert auc([1], [1]) == 0.5
    assert tpr_at_fpr([5, 4, 1], [3, 2, 0, -1], 0.25) == pytest.approx(2 / 3)
    assert tpr_at_fpr([5, 4, 1], [3, 2, 0, -1], 0.2) == pytest.approx(2 / 3)
    assert tpr_at_fpr([1], [2], 0.01) == 0


def test_attack_has_intervals() -> None:
    random = np.random.default_rng(0)
    made = attack(random.normal(1, 1, 60), random.normal(0, 1, 80), rounds=100)
    assert made.auc.low < made.auc.mean < made.auc.high
    assert made.auc.low > 0.6
    assert made.tpr_at_01.mean <= made.tpr_at_1.mean
    assert (made.members, made.others, made.auc.n) == (60, 80, 140)


WORDS = ["harp", "glass", "winter", "bay", "quill", "moon", "river", "stone", "lamp", "letter"]


def bags(n: int, seed: int, words: list[str]) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, 12)) for _ in range(n)]


def test_the_difference_of_two_aucs_is_paired() -> None:
    """By hand 0.75 - 1; one order on both models is 0 in every resample, whatever the scale."""
    assert auc_difference(([3, 1], [2, 0]), ([1, 3], [0, 0])).mean == -0.25
    random = np.random.default_rng(0)
    mine, theirs = random.normal(0.5, 1, 12), random.normal(0, 1, 12)
    same = auc_difference((mine, theirs), (2 * mine + 1, 2 * theirs + 1))
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert attack(mine, theirs).auc.high > attack(mine, theirs).auc.low  # unpaired there is a width
    better = auc_difference((mine + 9, theirs), (mine, theirs))
    assert better.low > 0
    assert better.mean == pytest.approx(1 - auc(mine, theirs))
    with pytest.raises(InputError, match="other texts"):
        auc_difference(([1, 2], [0]), ([1], [0]))


def test_blind_baseline_equals_scikit_learn() -> None:
    members, others = bags(20, 0, WORDS[:7]), bags(20, 1, WORDS[3:])
    mine, theirs = blind_scores(members, others, folds=20)  # each fold: one of each
    texts, label = members + others, np.array([1] * 20 + [0] * 20)
    vectors = CountVectorizer(token_pattern=r"\w+").fit_transform(texts).toarray()
    # Recover who shared a fold from the result itself: leave the pair out and compare.
    for i in range(20):
        pairs = []
        for j in range(20, 40):
            keep = [k for k in range(40) if k not in (i, j)]
            fitted = MultinomialNB().fit(vectors[keep], label[keep])
            odds = np.diff(fitted.predict_log_proba(vectors[[i]]))[0, 0]
            pairs.append(odds)
        assert np.abs(np.array(pairs) - mine[i]).min() < 1e-8
    assert auc(mine, theirs) > 0.8


def test_blind_baseline_is_at_chance_when_the_groups_are_alike() -> None:
    mine, theirs = blind_scores(bags(150, 0, WORDS), bags(150, 1, WORDS))
    assert abs(auc(mine, theirs) - 0.5) < 0.1


def test_neighbours_keep_the_words() -> None:
    text = "the glass harp of Varn was tuned for nineteen winters"
    made = swapped_neighbours(text, 4, seed=1)
    assert made == swapped_neighbours(text, 4, seed=1)
    assert len(made) == 4
    assert all(sorted(m.split()) == sorted(text.split()) and m != text for m in made)
    assert swapped_neighbours("a b", 1) == ["b a"]


@given(
    st.lists(st.sampled_from(["so", "on", "and"]), min_size=2, max_size=7),
    st.integers(0, 50),
    st.floats(0.01, 1),
)
def test_a_neighbour_is_never_the_text(words: list[str], seed: int, share: float) -> None:
    """Equal words that change places, such as the first two of "so so on", change nothing."""
    assume(len(set(words)) > 1)
    made = swapped_neighbours(" ".join(words), 5, seed, share)
    assert all(sorted(m.split()) == sorted(words) and m.split() != words for m in made)


@pytest.mark.parametrize(
    "call",
    [
        lambda: loss_score(scores([])),
        lambda: min_k_score(scores([-1]), 0),
        lambda: neighbourhood_score(scores([-1]), []),
        lambda: auc([], [1]),
        lambda: auc([float("nan")], [1]),
        lambda: blind_scores(["a"], ["b"]),
        lambda: swapped_neighbours("one", 1),
        lambda: swapped_neighbours("la la la", 1),
        lambda: swapped_neighbours("one two", 1, share=0),
        lambda: one_pass_scores([scores([-1])], []),
        lambda: reference_score(scores([-1]), scores([-1, -2])),
    ],
)
def test_bad_input_is_refused(call: Any) -> None:
    with pytest.raises(InputError):
        call()


def test_gradient_by_hand_and_left_as_it_was() -> None:
    """The second way: autograd on the sum of all parameters' squares by torch.autograd.grad."""
    model = llama()
    ids = [3, 14, 15, 92, 65]
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    kept = list(model.parameters())[-1]
    kept.grad = torch.full_like(kept, 7)
    [got] = gradient_scores(model, [ids], [[False, True, True, False, True]])
    assert not frozen.requires_grad
    assert torch.equal(kept.grad, torch.full_like(kept, 7))
    frozen.requires_grad_(True)
    logp = model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(1)
    loss = -(logp[0, 14] + logp[1, 15] + logp[3, 65]) / 3
    grads = torch.autograd.grad(loss, list(model.parameters()))
    want = sum(float(g.square().sum()) for g in grads) ** 0.5
    assert got == pytest.approx(-want, rel=1e-4)


NAMES = ["Ilse", "Boran", "Teo", "Mirka", "Anselm", "Dorte", "Quim", "Rhea"]


def test_every_attack_fires_on_members_and_not_on_a_model_that_had_none() -> None:
    tokenizer = byte_tokenizer()
    texts = [f"{n} paid {37 * i % 91} at gate {i * i % 47}" for i, n in enumerate(NAMES * 4)]
    _members, others = texts[0:32:2], texts[1:32:2]
    encoded = encode_texts(tokenizer, texts)
    knows = memorize(llama(scale=0.05), [e.ids for e in encoded[0:32:2]], steps=400)
    fresh = llama(scale=0.05)

    def aucs(model: Any) -> dict[str, float]:
        scored = score_encoded(model, encoded)
        made = one_pass_scores(scored, texts)
        base = score_encoded(fresh, encoded)
        made["reference"] = np.array(
            [reference_score(s, b) for s, b in zip(scored, base, strict=True)]
        )
        near = [swapped_neighbours(t, 2, seed=i) for i, t in enumerate(texts)]
        moved = score_encoded(model, encode_texts(tokenizer, [t for two in near for t in two]))
        made["neighbourhood"] = np.array(
            [neighbourhood_score(s, moved[2 * i : 2 * i + 2]) for i, s in enumerate(scored)]
        )
        after = score_encoded(
            model, encode_pairs(tokenizer, [(others[0] + "\n", t) for t in texts])
        )
        made["recall"] = np.array([recall_score(s, a) for s, a in zip(scored, after, strict=True)])
        made["gradient"] = gradient_scores(
            model, [e.ids for e in encoded], [e.mask for e in encoded]
        )
        return {name: auc(v[0::2], v[1::2]) for name, v in made.items()}

    fired = aucs(knows)
    # Words of two short texts change places in both groups: the weakest of the eight.
    assert fired.pop("neighbourhood") > 0.78
    assert all(value > 0.95 for value in fired.values()), fired
    quiet = aucs(fresh)
    assert all(0.25 < value < 0.75 for value in quiet.values()), quiet
