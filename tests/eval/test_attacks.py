"""Attacks on weights and states: they fire on a model that knows the text, and not on one that does not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from probe_models import byte_tokenizer, gpt2, llama, memorize, qwen2

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.eval.contrast import guided, guided_generate, guided_hits, tail_share
from llm_unlearn.eval.encoding import Encoded, encode_pairs
from llm_unlearn.eval.hidden import linear_probe, logit_lens, mean_states
from llm_unlearn.eval.membership import auc
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.eval.soft import Attacked, advantage, embedding_attack

PAIRS = [("Q: who? A:", " Ilse of Varn."), ("Q: when? A:", " Winter 1911.")]
CONTROLS = [("Q: who? A:", " Brom of Sulk."), ("Q: when? A:", " Summer 1863.")]


def encoded(pairs: list[tuple[str, str]]) -> tuple[list[list[int]], list[list[bool]]]:
    items = encode_pairs(byte_tokenizer(), pairs)
    return [e.ids for e in items], [e.mask for e in items]


@pytest.fixture(scope="module")
def knowing() -> Any:
    return memorize(llama(scale=0.05), encoded(PAIRS)[0], steps=200)


@pytest.fixture(scope="module")
def never_had() -> Any:
    return memorize(llama(scale=0.05), encoded([("Q: where? A:", " Nowhere.")])[0], steps=60)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_an_embedding_attack_tells_the_suppressed_from_the_never_trained(
    knowing: Any, never_had: Any
) -> None:
    """Taught to refuse on top of the text: the push brings it back, and brings no control."""
    refusals = encoded([(question, " No.") for question, _ in PAIRS])[0]
    suppressed = memorize(copy.deepcopy(knowing), refusals, steps=24)
    before = state(suppressed)
    budget: dict[str, Any] = {"vectors": 4, "steps": 20, "rate": 0.2}
    mine = embedding_attack(suppressed, *encoded(PAIRS), **budget)
    theirs = embedding_attack(suppressed, *encoded(CONTROLS), **budget)
    assert mine.before.max() < 0.5
    assert (mine.after > mine.before).all()
    won = advantage(mine, theirs)
    assert won.low > 1.5
    assert won.n == 4
    fresh = embedding_attack(never_had, *encoded(PAIRS), **budget)
    fresh_control = embedding_attack(never_had, *encoded(CONTROLS), **budget)
    assert (fresh.after > 2 * fresh.before).all()  # it does force
    assert abs(advantage(fresh, fresh_control).mean) < 1
    assert all(torch.equal(v, before[k]) for k, v in suppressed.state_dict().items())
    again = embedding_attack(suppressed, *encoded(PAIRS), **budget)
    assert np.array_equal(mine.after, again.after)


def test_the_attack_measures_only_what_it_was_not_shown(never_had: Any) -> None:
    ids, mask = encoded(PAIRS[:1])
    items = [Encoded(i, m, []) for i, m in zip(ids, mask, strict=True)]
    [scores] = score_encoded(never_had, items)
    for shown, first in ((1.0, 0), (0.5, -(-len(scores) // 2))):
        found = embedding_attack(never_had, ids, mask, steps=1, shown=shown)
        assert found.before[0] == pytest.approx(np.exp(scores.logp[first:].mean()), rel=1e-4)
    one = Attacked(np.exp([0.0, 0.0]), np.exp([-1.0, -3.0]))
    other = Attacked(np.exp([0.0, 0.0]), np.exp([-4.0, -4.0]))
    assert one.gain == pytest.approx([-1, -3])
    assert advantage(one, other).mean == pytest.approx(2)
    with pytest.raises(InputError, match="too few targets"):
        embedding_attack(never_had, [[1, 2]], [[False, True]], shown=0.5)
    with pytest.raises(InputError, match="share of 0"):
        embedding_attack(never_had, ids, mask, shown=0)


@pytest.mark.parametrize("make", [llama, gpt2, qwen2])
def test_the_lens_ends_in_the_models_own_probability(make: Any) -> None:
    model = make().eval()
    items = encode_pairs(byte_tokenizer(), PAIRS)
    lens = logit_lens(model, [e.ids for e in items], [e.mask for e in items])
    assert not any(m._forward_hooks for m in model.modules())
    own = [np.exp(s.logp.mean()) for s in score_encoded(model, items)]
    assert lens.shape == (2, 2)
    assert lens[:, -1] == pytest.approx(own, rel=1e-3)
    # by hand: the state after the first layer, through the final norm and the head
    with torch.no_grad():
        out = model(input_ids=torch.tensor([items[0].ids]), output_hidden_states=True)
        norm = model.transformer.ln_f if make is gpt2 else model.model.norm
        logp = model.lm_head(norm(out.hidden_states[1][0])).log_softmax(-1)
    where = np.flatnonzero(items[0].mask)
    hand = np.mean([float(logp[p - 1, items[0].ids[p]]) for p in where])
    assert lens[0, 0] == pytest.approx(np.exp(hand), rel=1e-3)


def test_the_lens_sees_what_a_spoilt_head_hides(knowing: Any) -> None:
    """The last layer's output is spoilt, as output-only forgetting does: earlier layers still know."""
    ids, mask = encoded(PAIRS)
    last = knowing.model.layers[-1]
    saved = state(last)
    with torch.no_grad():
        last.mlp.down_proj.weight.mul_(-6)
    try:
        spoilt = logit_lens(knowing, ids, mask)
    finally:
        last.load_state_dict(saved)
    plain = logit_lens(knowing, ids, mask)
    assert plain[:, -1].mean() > 0.8
    assert spoilt[:, 0] == pytest.approx(plain[:, 0])
    assert spoilt[:, -1].mean() < 0.3


def test_a_linear_probe_reads_a_label_out_of_fold_and_nothing_out_of_noise() -> None:
    random = np.random.default_rng(0)
    labels = [bool(i % 2) for i in range(60)]
    groups = [str(i // 2) for i in range(60)]
    signal = random.normal(size=(60, 80))
    signal[:, 3] += np.where(labels, 2.0, -2.0)
    assert auc(*linear_probe(signal, labels, groups)) > 0.85
    noise = [auc(*linear_probe(random.normal(size=(60, 80)), labels, groups)) for _ in range(10)]
    assert 0.35 < np.mean(noise) < 0.65
    # a label that is a property of the group cannot be read from a copy of the group's own text
    twins = np.repeat(random.normal(size=(30, 80)), 2, axis=0)
    by_group = [bool(i // 2 % 2) for i in range(60)]
    assert auc(*linear_probe(twins, by_group, groups)) < 0.75
    with pytest.raises(InputError, match="both labels"):
        linear_probe(signal, [True] * 60, groups)
    with pytest.raises(InputError, match="2 groups"):
        linear_probe(signal[:4], labels[:4], groups[:4])


def test_mean_states_are_those_of_transformers() -> None:
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2)).eval()
    ids, mask = encoded(PAIRS)
    found = mean_states(model, ids, mask)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids[0]]), output_hidden_states=True)
    assert found.shape == (2, 2, 32)
    assert found[0, 0] == pytest.approx(
        out.hidden_states[1][0][np.flatnonzero(mask[0])].mean(0).numpy(), abs=1e-5
    )


def test_guidance_by_hand() -> None:
    before, after = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.8, 0.2]).log()
    assert guided(before, after, 2, 0.1).exp().tolist() == pytest.approx([0.45, 0.8])
    assert guided(before, after, 2, 0.7).argmax() == 0
    assert torch.equal(guided(before, after, 0, 0.1), after)
    assert guided(before, after, 1, 0.1).tolist() == pytest.approx(before.tolist())
    assert tail_share(np.array([True, False, True, True])) == 0.5
    assert tail_share(np.array([True, False])) == 0
    with pytest.raises(InputError, match="least 0"):
        guided_hits(None, None, [], [], least=0)  # type: ignore[arg-type]


def test_comparing_checkpoints_brings_out_what_one_of_them_half_knows(never_had: Any) -> None:
    """Half learned: its own greedy decoding fails, the difference to never-had does not."""
    ids, mask = encoded(PAIRS)
    half = memorize(llama(scale=0.05), [*ids, *encoded(CONTROLS)[0]], steps=75)

    def side(model: Any) -> Any:
        @contextmanager
        def put() -> Iterator[Any]:
            yield model

        return put

    alone = [
        s.hit
        for s in score_encoded(half, [Encoded(i, m, []) for i, m in zip(ids, mask, strict=True)])
    ]
    same = guided_hits(side(half), side(half), ids, mask)
    assert [h.tolist() for h in same] == [h.tolist() for h in alone]  # no difference, no guidance
    steered = guided_hits(side(half), side(never_had), ids, mask, weight=1.0)
    assert [h.tolist() for h in steered] == [
        h.tolist() for h in alone
    ]  # weight 1 is the model before
    prompts = [i[: m.index(True)] for i, m in zip(ids, mask, strict=True)]
    said = guided_generate(side(half), side(never_had), prompts, max_new_tokens=6, weight=1.5)
    for prompt, words in zip(prompts, said, strict=True):
        row = list(prompt)
        for token in words:  # against plain passes without a cache
            with torch.no_grad():
                logs = [
                    m(input_ids=torch.tensor([row])).logits[0, -1].float().log_softmax(-1)
                    for m in (half, never_had)
                ]
            assert int(guided(*logs, 1.5, 1e-3).argmax()) == token
            row.append(token)
    with pytest.raises(InputError, match="empty"):
        guided_generate(side(half), side(half), [[]])


def test_a_lens_without_a_norm_says_so() -> None:
    model = llama()
    del model.model.norm
    with pytest.raises(EnvironmentFailure, match="final norm"):
        logit_lens(model, *encoded(PAIRS))
