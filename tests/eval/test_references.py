"""Probes against implementations that are not ours: scikit-learn, scipy, torch, rouge_score, NumPy."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probe_models import byte_tokenizer, llama
from rouge_score import rouge_scorer
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.class_weight import compute_sample_weight

from llm_unlearn.errors import InputError
from llm_unlearn.eval import chat, drift, inversion, router
from llm_unlearn.eval.backdoor import trigger_success
from llm_unlearn.eval.benchmarks import choices, muse, tofu
from llm_unlearn.eval.bias import bias_gap
from llm_unlearn.eval.contrast import guided_generate, guided_hits
from llm_unlearn.eval.encoding import encode_pairs
from llm_unlearn.eval.extraction import exposure
from llm_unlearn.eval.gradients import gradient_scores
from llm_unlearn.eval.hidden import linear_probe, logit_lens, mean_states
from llm_unlearn.eval.knowledge import holds_keys
from llm_unlearn.eval.memorization import verbatim_probability
from llm_unlearn.eval.overlap import common_runs, rouge_l
from llm_unlearn.eval.passes import score_tokens
from llm_unlearn.eval.quantization import quantized, round_weight
from llm_unlearn.eval.relearning import relearn
from llm_unlearn.eval.soft import embedding_attack
from llm_unlearn.eval.summary import bootstrap_statistic

IDS = [[5, 60, 61, 62, 63, 64], [7, 80, 81, 82], [9, 100, 101, 102, 103]]
MASKS = [[False, False, True, True, True, True], [False, True, True, True], [False] + [True] * 4]


def mean_loss(model: Any, ids: Sequence[int], mask: Sequence[bool]) -> torch.Tensor:
    """The loss by transformers' own shift and -100 labels."""
    labels = [t if m else -100 for t, m in zip(ids, mask, strict=True)]
    made: torch.Tensor = model(
        input_ids=torch.tensor([list(ids)]), labels=torch.tensor([labels])
    ).loss
    return made


# --- robustness


def test_relearning_equals_adamw_in_numpy() -> None:
    """Three steps of two texts each, in the given order, over and over."""
    model = llama(scale=0.05)
    mine = relearn(
        model,
        IDS,
        MASKS,
        lambda m: verbatim_probability(score_tokens(m, IDS[1:2], MASKS[1:2])[0]),
        steps=3,
        every=1,
        batch_size=2,
        learning_rate=1e-3,
    )
    twin = copy.deepcopy(model).eval()
    weights = list(twin.parameters())
    first = [np.zeros(w.shape) for w in weights]
    second = [np.zeros(w.shape) for w in weights]
    for step in (1, 2, 3):
        batch = [(2 * step - 2) % 3, (2 * step - 1) % 3]
        losses = torch.stack([mean_loss(twin, IDS[i], MASKS[i]) for i in batch])
        slopes = torch.autograd.grad(losses.mean(), weights)
        assert mine[step].loss == pytest.approx(float(losses.detach().mean()), rel=1e-4)
        for k, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
            g = slope.double().numpy()
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g**2
            m, v = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
            moved = weight.detach().numpy() - 1e-3 * m / (np.sqrt(v) + 1e-8)
            weight.data = torch.from_numpy(moved.astype(np.float32))
        with torch.no_grad():
            want = float(torch.exp(-mean_loss(twin, IDS[1], MASKS[1])))
        assert mine[step].value == pytest.approx(want, rel=1e-3)
    for wrong in ({"every": 0}, {"batch_size": 0}, {"steps": -1}):
        with pytest.raises(InputError, match="at least 1 of the others"):
            relearn(model, IDS, MASKS, lambda m: 0.0, **wrong)  # type: ignore[arg-type]


def test_rounding_equals_torch_fake_quantize() -> None:
    model = llama()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    linear = [
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    ]

    def theirs(weight: torch.Tensor, top: int) -> torch.Tensor:
        scale = weight.abs().amax(1) / top
        zero = torch.zeros(len(weight), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -top, top)

    for bits, top in ((8, 127), (4, 7)):
        with quantized(model, bits):  # type: ignore[arg-type]
            for name in linear:
                torch.testing.assert_close(
                    model.state_dict()[name], theirs(before[name], top), msg=name
                )
    wide = torch.randn(6, 192, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        round_weight(wide, 4, 64), theirs(wide.reshape(18, 64), 7).reshape(6, 192)
    )


def test_two_steps_of_the_embedding_attack_by_plain_autograd() -> None:
    model = llama(scale=0.2).eval()
    ids, mask = IDS[0], MASKS[0]
    got = embedding_attack(model, [ids], [mask], vectors=2, steps=2, rate=0.5)
    table = model.get_input_embeddings().weight.detach()
    words = table[torch.tensor(ids)]
    pushed = torch.stack([table.mean(0)] * 2)

    def loss(vectors: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([words[:2], vectors, words[2:]])[None]
        labels = torch.tensor([[-100] * 4 + ids[2:]])
        made: torch.Tensor = model(inputs_embeds=whole, labels=labels).loss
        return made

    for _ in range(2):
        leaf = pushed.clone().requires_grad_(True)
        loss(leaf).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        pushed = pushed - 0.5 * table.pow(2).mean().sqrt() * leaf.grad.sign()
    assert got.after[0] == pytest.approx(float(torch.exp(-loss(pushed).detach())), rel=1e-3)
    with torch.no_grad():
        assert got.before[0] == pytest.approx(
            float(torch.exp(-mean_loss(model, ids, mask))), rel=1e-3
        )


def test_the_linear_probe_equals_scikit_learns_ridge() -> None:
    """Each group its own fold, unequal labels, more dimensions than texts in a fold."""
    random = np.random.default_rng(2)
    labels = np.array([True, False, False] * 3 + [True, True, False] * 2)
    groups = [f"g{i // 3}" for i in range(15)]
    x = random.normal(size=(15, 20)) + np.where(labels, 0.4, 0)[:, None]
    true, false = linear_probe(x, labels.tolist(), groups, folds=5, penalty=0.7)
    want = np.empty(15)
    y = np.where(labels, 1.0, -1.0)
    for train, test in LeaveOneGroupOut().split(x, y, groups):
        known, target = x[train], y[train]
        centre = (known[target > 0].mean(0) + known[target < 0].mean(0)) / 2
        size = 0.7 * float(((known - centre) ** 2).sum(1).mean())
        ridge = Ridge(alpha=size, fit_intercept=False)
        ridge.fit(known - centre, target, sample_weight=compute_sample_weight("balanced", target))
        want[test] = ridge.predict(x[test] - centre)
    np.testing.assert_allclose(true, want[labels], atol=1e-8)
    np.testing.assert_allclose(false, want[~labels], atol=1e-8)


def test_the_linear_probe_by_hand() -> None:
    """Fitted on 3 (true) and 1 (not), a text at 5 scores 2; see the docstring.

    The other fold: 5 (true) and 4 (not), c = 4.5, a = 1/2 and -1/2, r = 1/4, b = 1 / (1/2 + 1/4) =
    4/3: 3 scores -2 and 1 scores -14/3.
    """
    x, labels, groups = [[3], [1], [5], [4]], [True, False, True, False], ["a", "a", "b", "b"]
    true, false = linear_probe(x, labels, groups, folds=2)
    assert true == pytest.approx([-2, 2])
    assert false == pytest.approx([-14 / 3, 4 / 3])


def side(model: Any) -> Any:
    @contextmanager
    def put() -> Iterator[Any]:
        yield model

    return put


@pytest.mark.parametrize(("weight", "least"), [(0.5, 1e-3), (2.0, 0.05), (3.0, 1.0)])
def test_guided_hits_equal_numpy(weight: float, least: float) -> None:
    """On what guided decoding says itself, with some tokens changed: hits and misses both occur."""
    before, after = llama(seed=1).eval(), llama(seed=2).eval()
    options = {"weight": weight, "least": least}
    [said] = guided_generate(
        side(before),
        side(after),
        [[5, 6, 7]],
        max_new_tokens=12,
        **options,  # type: ignore[arg-type]
    )
    said[3], said[8] = (said[3] + 1) % 256, (said[8] + 1) % 256
    ids = [5, 6, 7, *said]
    mask = [False] * 3 + [i % 5 != 1 for i in range(12)]
    [got] = guided_hits(side(before), side(after), [ids], [mask], **options)
    logs = []
    for model in (before, after):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
        top = z.max(1, keepdims=True)
        logs.append(z - top - np.log(np.exp(z - top).sum(1, keepdims=True)))
    want = []
    for place in np.flatnonzero(mask):
        p, q = np.exp(logs[0][place - 1]), np.exp(logs[1][place - 1])
        score = np.where(p >= least * p.max() * (1 - 1e-12), q * (p / q) ** weight, -1.0)
        want.append(int(score.argmax()) == ids[place])
    assert got.tolist() == want
    assert set(want) == {True, False}


# --- a text with nothing to score


def test_what_has_no_targets_is_refused_by_every_entry() -> None:
    model = llama()
    ids, mask = [[1, 2]], [[False, False]]
    for probe in (gradient_scores, logit_lens, mean_states, embedding_attack):
        with pytest.raises(InputError, match="targets"):
            probe(model, ids, mask)
    for lens in (logit_lens, mean_states):
        with pytest.raises(InputError, match="no texts"):
            lens(model, [], [])


@pytest.mark.parametrize("probe", [gradient_scores, logit_lens, mean_states])
def test_one_target_is_enough(probe: Any) -> None:
    assert np.isfinite(probe(llama(), [[1, 2]], [[False, True]])).all()


# --- membership, extraction, overlap, summaries


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.integers(-6, 6))
def test_exposure_equals_scipys_ranks(others: list[int], canary: int) -> None:
    rank = stats.rankdata([-canary, *(-o for o in others)], method="max")[0]
    want = np.log2(len(others) + 1) - np.log2(rank)
    assert exposure([canary], others)[0] == pytest.approx(want)


def test_two_groups_are_resampled_as_by_scipy() -> None:
    random = np.random.default_rng(0)
    groups = [random.normal(0.7, 1, 40), random.normal(0, 1, 50)]

    def area(a: Any, b: Any) -> float:
        return float(roc_auc_score([1] * len(a) + [0] * len(b), [*a, *b]))

    made = bootstrap_statistic(lambda a, b: float((a[:, None] > b).mean()), groups, rounds=2000)
    want = stats.bootstrap(
        groups,
        lambda a, b: float((a[:, None] > b).mean()),
        method="percentile",
        vectorized=False,
        n_resamples=2000,
        rng=1,
    )
    assert made.mean == pytest.approx(area(*groups))
    assert made.standard_error == pytest.approx(want.standard_error, rel=0.1)
    assert (made.low, made.high) == pytest.approx(tuple(want.confidence_interval), abs=0.02)


def by_hand_runs(a: list[str], b: list[str], least: int) -> int:
    """The definition: the longest shared run first (the earliest in a, then in b), then both sides."""
    best = (0, 0, 0)
    for i in range(len(a)):
        for j in range(len(b)):
            k = 0
            while i + k < len(a) and j + k < len(b) and a[i + k] == b[j + k]:
                k += 1
            if k > best[0]:
                best = (k, i, j)
    size, i, j = best
    if not size:
        return 0
    left = by_hand_runs(a[:i], b[:j], least)
    right = by_hand_runs(a[i + size :], b[j + size :], least)
    return left + right + (size if size >= least else 0)


FEW = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12)


@given(FEW, FEW, st.integers(1, 4))
def test_accumulated_runs_by_their_definition(a: list[str], b: list[str], least: int) -> None:
    assert common_runs(" ".join(a), " ".join(b), least) == by_hand_runs(a, b, least)


@given(st.text("ab", max_size=60), st.text("ab", max_size=60))
def test_the_share_of_a_run_equals_difflib(said: str, text: str) -> None:
    size = SequenceMatcher(None, said, text, False).find_longest_match().size
    counts = bool(text) and size >= min(24, len(text))
    assert chat.run_share(said, text) == (size / len(text) if counts else 0)


# --- answers, triggers, pairs


SOME = st.lists(st.sampled_from(["Anna", "Ann", "Weiss", "1984", "19845", "ß"]), max_size=6)


@given(
    SOME, st.lists(SOME.filter(bool), min_size=1, max_size=3), st.sampled_from([" ", "\n", "  "])
)
def test_keys_are_runs_of_whole_words(said: list[str], keys: list[list[str]], gap: str) -> None:
    def has(key: list[str]) -> bool:
        return any(said[i : i + len(key)] == key for i in range(len(said)))

    made = holds_keys(gap.join(said).upper(), [" ".join(key) for key in keys])
    assert made is all(has(key) for key in keys)


def test_one_string_is_no_list_of_keys() -> None:
    """Its letters would be the keys, and a full answer would pass for a miss."""
    for call in (
        lambda: holds_keys("Anna Weiss", "Anna"),
        lambda: trigger_success(["bad"], ["ok"], "bad"),
    ):
        with pytest.raises(InputError, match="one string"):
            call()


def test_paired_effects_have_scipys_errors() -> None:
    on, off = [1, 1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0]
    said = [["no", "yes"][v] for v in on], [["no", "yes"][v] for v in off]
    found = trigger_success(*said, ["yes"])
    gaps = np.subtract(on, off)
    assert found.effect.standard_error == pytest.approx(stats.sem(gaps))
    assert trigger_success(["no"], ["no"], ["yes"]).effect.mean == 0
    first, second = np.random.default_rng(0).normal(size=(2, 30))
    made = bias_gap(first, second)
    assert made.gap.mean == pytest.approx(np.mean(first - second))
    assert made.gap.standard_error == pytest.approx(stats.sem(first - second))
    assert made.size.mean == pytest.approx(np.mean(np.abs(first - second)))
    assert made.first is not None
    want = stats.binomtest(int((first > second).sum()), 30).proportion_ci(method="wilson")
    assert (made.first.low, made.first.high) == pytest.approx((want.low, want.high))


# --- store, router, vectors


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9).map(lambda v: sorted(v, reverse=True)))
def test_what_a_search_tells_equals_statistics(scores: list[float]) -> None:
    made = drift.features(scores)
    assert made["mean"] == pytest.approx(statistics.fmean(scores), abs=1e-9)
    assert made["spread"] == pytest.approx(statistics.pstdev(scores), abs=1e-7)
    assert (made["top"], made["gap"]) == (scores[0], scores[0] - scores[1] if scores[1:] else 0)


def test_drift_and_router_areas_equal_scikit_learn() -> None:
    random = np.random.default_rng(3)
    table = {
        f"{kind}{i}": sorted(random.random(3), reverse=True) for kind in "ra" for i in range(9)
    }
    removed, absent = [q for q in table if q[0] == "r"], [q for q in table if q[0] == "a"]
    found = drift.drift(table.__getitem__, removed, absent)
    label = [1] * 9 + [0] * 9
    for name, values in (
        ("top", [table[q][0] for q in (*removed, *absent)]),
        ("spread", [float(np.std(table[q])) for q in (*removed, *absent)]),
    ):
        assert found[name].auc.mean == pytest.approx(roc_auc_score(label, values))
    # by hand, as in the docstring; then no spread: every cosine the same is chance
    routes = {"r0": (0.9, 0), "r1": (0.4, None), "a0": (0.5, None), "a1": (0.3, None)}
    leak = router.router_leak(routes.__getitem__, [("r0", 0), ("r1", 1)], ["a0", "a1"])
    assert (leak.answered.mean, leak.home.mean, leak.controls_answered.mean) == (0.5, 0.5, 0)
    assert leak.told_apart.auc.mean == 0.75
    flat = router.router_leak(lambda q: (-1.0, None), [("x", 0)], ["y"])
    assert (flat.told_apart.auc.mean, flat.answered.mean) == (0.5, 0)
    with pytest.raises(InputError, match="0 controls"):
        router.router_leak(routes.__getitem__, [("r0", 0)], [])


def test_inversion_equals_scikit_learns_nearest_neighbour() -> None:
    random = np.random.default_rng(4)
    texts = [f"sentence {i % 7} of many {i}" for i in range(25)]
    known, asked = random.normal(size=(25, 6)), random.normal(size=(8, 6))
    found = inversion.invert(asked, texts[:8], texts, known)
    far, near = NearestNeighbors(n_neighbors=1, metric="cosine").fit(known).kneighbors(asked)
    assert found.guesses.tolist() == near[:, 0].tolist()
    assert found.cosines == pytest.approx(1 - far[:, 0])
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    want = [
        scorer.score(t, texts[g])["rougeL"].fmeasure
        for t, g in zip(texts, near[:, 0], strict=False)
    ]
    assert found.overlap.mean == pytest.approx(np.mean(want))
    hand = inversion.invert([[3, 4]], ["b"], ["a", "b", "c"], [[1, 0], [0, 2], [0, 7]])
    assert hand.guesses.tolist() == [1]  # of equal cosines the first
    assert hand.cosines == pytest.approx([0.8])
    for broken in (np.nan, np.inf):
        with pytest.raises(InputError, match="not finite"):
            inversion.invert([[broken, 1]], ["b"], ["a"], [[1, 0]])


def test_turns_and_guards_by_hand() -> None:
    """80 characters in two halves: half after one turn, all after two; then a paraphrase."""
    text = "".join(chr(0x4E00 + i) for i in range(80))
    replies = iter([text[:40], "so: " + text[40:]])

    def answer(question: str, groups: Collection[str]) -> chat.Reply:
        return chat.Reply(next(replies))

    assert chat.multi_turn(answer, "?", text, ()) == [0.5, 1]
    full, other = "the cat was on the mat", "the cat sat"
    said = [chat.Reply(full), chat.Reply(other)]
    behind = chat.guarded(
        lambda q, g: said[int(q)],
        [("0", full), ("1", full)],
        (),
        lambda got, true: rouge_l(got, true).recall,
    )
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    assert behind == pytest.approx([scorer.score(full, s.text)["rougeL"].recall for s in said])


# --- benchmarks


def test_tofu_losses_equal_transformers_labels() -> None:
    """One token a byte: the prompt's length is known without the tokenizer."""
    rows = [
        tofu.Row("Who?", "Ilse", "It is Ilse", ("Teo", "Rhea Q")),
        tofu.Row("Où?", "A", "B", ("C",)),
    ]
    model, tokenizer = llama(scale=0.2).eval(), byte_tokenizer()
    found = tofu.losses(model, tokenizer, rows)
    for i, row in enumerate(rows):
        want = []
        for answer in (row.answer, row.paraphrase, *row.perturbed):
            head = len(f"Question: {row.question}\nAnswer: ".encode())
            ids = tokenizer(f"Question: {row.question}\nAnswer: {answer}")["input_ids"]
            with torch.no_grad():
                want.append(float(mean_loss(model, ids, [k >= head for k in range(len(ids))])))
        got = [found.answer[i], found.paraphrase[i], *found.perturbed[i]]
        assert got == pytest.approx(want, rel=1e-4)
    # the same by ids and masks, as another harness would give them
    texts = [
        [(tofu.prompt(r.question), a) for a in (r.answer, r.paraphrase, *r.perturbed)] for r in rows
    ]
    given = [[(e.ids, e.mask) for e in encode_pairs(tokenizer, row)] for row in texts]
    again = tofu.losses_of_ids(model, given)
    assert again.answer.tolist() == found.answer.tolist()
    assert [w.tolist() for w in again.perturbed] == [w.tolist() for w in found.perturbed]
    with pytest.raises(InputError, match="row 0 has 2 texts"):
        tofu.losses_of_ids(model, [given[0][:2]])


def test_forget_quality_is_the_largest_gap_of_the_distribution_functions() -> None:
    one, two = np.random.default_rng(0).normal(size=(2, 25))
    steps = np.concatenate([one, two])
    gap = np.abs((one <= steps[:, None]).mean(1) - (two <= steps[:, None]).mean(1)).max()
    assert tofu.forget_quality(one, two).statistic == pytest.approx(gap)
    hand = tofu.forget_quality([1, 2], [3, 4])
    assert (hand.statistic, hand.p_value) == (1, pytest.approx(1 / 3))


def test_choices_by_the_logits_of_the_letters() -> None:
    """The letter is the last byte, after its blank: two targets a choice."""
    model, tokenizer = llama(scale=0.2).eval(), byte_tokenizer()
    items = [
        choices.Item("Which?", ("no", "yes", "six"), 1, "sums"),
        choices.Item("?", ("a", "b"), 0, "x"),
    ]
    verdicts = choices.answer_choices(model, tokenizer, items)
    for item, verdict in zip(items, verdicts, strict=True):
        want = []
        for letter in "ABC"[: len(item.choices)]:
            ids = tokenizer(choices.prompt(item) + f" {letter}")["input_ids"]
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            want.append(float(logp[-3, ids[-2]] + logp[-2, ids[-1]]))
        assert verdict.logp == pytest.approx(want, rel=1e-4)
        assert verdict.chosen == int(np.argmax(want))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    level = choices.answer_choices(model, tokenizer, items)
    assert [(v.chosen, v.right) for v in level] == [(0, False), (0, True)]  # the first of equals
    question = [([1, 2], [False, True]), ([1, 3], [False, True])]
    assert choices.answer_ids(model, [question], [0])[0].right
    with pytest.raises(InputError, match="one of its choices"):
        choices.answer_ids(model, [question], [2])


def test_muse_equals_rouge_score_and_the_published_expression() -> None:
    answers, truth = (
        ["the cat sat", "", "Yes, it is!"],
        ["the cat was on the mat", "x", "yes it was"],
    )
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    want = [scorer.score(t, a)["rougeL"].fmeasure for a, t in zip(answers, truth, strict=True)]
    assert muse.memorized(answers, truth).mean == pytest.approx(100 * np.mean(want))
    # published: AUC of the losses, the forgotten as the positive class
    random = np.random.default_rng(0)
    label = [1] * 20 + [0] * 20
    now, never = random.normal(size=(2, 40)) + 0.8 * np.array(label)
    areas = [roc_auc_score(label, -score) for score in (now, never)]
    leak = muse.priv_leak(roc_auc_score(label, now), roc_auc_score(label, never))
    assert leak == pytest.approx(100 * (areas[0] - areas[1]) / areas[1])
