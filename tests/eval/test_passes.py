"""Token boundaries by characters, one pass a text, and every reduction against NumPy."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from probe_models import (
    SIZE,
    bpe_tokenizer,
    byte_tokenizer,
    gpt2,
    llama,
    metaspace_tokenizer,
    qwen2,
)

from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import Encoded, encode_chats, encode_pairs, encode_texts
from llm_unlearn.eval.passes import Sampling, score_encoded, score_tokens

TOKENIZERS = {"bytes": byte_tokenizer, "bpe": bpe_tokenizer, "metaspace": metaspace_tokenizer}


def held(encoded: Encoded, text: str) -> str:
    """The characters that the masked tokens span."""
    kept = [s for s, m in zip(encoded.spans, encoded.mask, strict=True) if m]
    return text[min(a for a, _ in kept) : max(b for _, b in kept)]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("the question is", " Paris and the cat"),
        ("the question is ", "Paris and the cat"),
        ("the quest", "ion of the answer"),
        ("a\n", "cat"),
    ],
)
def test_answer_tokens_cover_the_answer_and_no_other_token_does(
    name: str, prompt: str, answer: str
) -> None:
    tokenizer = TOKENIZERS[name]()
    [encoded] = encode_pairs(tokenizer, [(prompt, answer)])
    text, edge = prompt + answer, len(prompt)
    assert len(encoded.ids) == len(encoded.mask) == len(encoded.spans)
    for (start, end), masked in zip(encoded.spans, encoded.mask, strict=True):
        assert masked == (end > edge and end > start)
    assert held(encoded, text).strip().endswith(answer.strip())
    assert encoded.mask[-1]  # the last token is scored


def test_a_token_across_the_boundary_is_scored() -> None:
    """ "the question is" + " Paris": BPE puts the blank and the word into one token."""
    tokenizer = bpe_tokenizer()
    [encoded] = encode_pairs(tokenizer, [("the answer is the ", "cat")])
    alone = tokenizer("the answer is the ")["input_ids"]
    # Tokenizing the prompt alone ends in a lone blank that the whole string does not have, so a
    # boundary counted in prompt tokens would score nothing.
    assert len(alone) >= len(encoded.ids)
    assert sum(encoded.mask) == 1
    assert tokenizer.decode([encoded.ids[-1]]) == " cat"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["the cat  sat ", "the cat\n\n sat \n", "cat   ", "\n the  cat"])
def test_blanks_are_scored_too(name: str, text: str) -> None:
    """GPT-2's offsets leave blanks out of tokens, and a token of a blank alone spans nothing."""
    [encoded] = encode_texts(TOKENIZERS[name](), [text])
    assert all(encoded.mask[1:])
    [pair] = encode_pairs(TOKENIZERS[name](), [("the answer", text)])
    assert pair.mask[-1]
    covered = {i for start, end in encoded.spans for i in range(start, end)}
    assert {i for i, char in enumerate(text) if char != " "} <= covered
    [cut] = encode_pairs(TOKENIZERS[name](), [(text, "Paris")])
    edge = len(text)
    for (_, end), masked in zip(cut.spans, cut.mask, strict=True):
        assert masked == (end > edge)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_any_text_has_its_answer_bytes_masked(prompt: str, answer: str) -> None:
    [encoded] = encode_pairs(byte_tokenizer(), [(prompt, answer)])
    masked = sum(encoded.mask)
    assert len(answer.encode("utf-8", "ignore")) <= masked <= len(encoded.ids) - 1


def test_whole_text_scores_all_but_the_first_token_unless_a_start_token_comes_first() -> None:
    [plain] = encode_texts(byte_tokenizer(), ["the cat"])
    assert plain.mask == [False] + [True] * 6
    [started] = encode_texts(metaspace_tokenizer(), ["the cat"])
    assert started.ids[0] == 1
    assert started.mask == [False] + [True] * (len(started.ids) - 1)


def test_chat_answer_is_found_even_when_the_question_repeats_it() -> None:
    tokenizer = byte_tokenizer()
    [encoded] = encode_chats(tokenizer, [("Is it Paris?", "Paris")], system="Be brief.")
    masked = [t for t, m in zip(encoded.ids, encoded.mask, strict=True) if m]
    assert tokenizer.decode(masked) == "Paris"
    text = tokenizer.decode(encoded.ids)
    assert "Be brief." in text
    first, _ = encoded.spans[encoded.mask.index(True)]
    assert first == text.rindex("Paris") > text.index("Is it Paris?") + 12


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: encode_pairs(byte_tokenizer(), [("", "x")]), "no token to score"),
        (lambda: encode_pairs(byte_tokenizer(), [("x", "")]), "no token to score"),
        (lambda: encode_chats(bpe_tokenizer(), [("a", "b")]), "no chat template"),
        (lambda: encode_chats(byte_tokenizer(), [("a", "")]), "does not keep the answer"),
        (lambda: encode_texts(object(), ["x"]), "no character offsets"),
        (lambda: Sampling(temperature=0), "temperature 0"),
        (lambda: Sampling(top_k=0), "top_k 0"),
    ],
)
def test_bad_input_is_refused(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


@pytest.mark.parametrize(
    ("ids", "mask", "says"),
    [
        ([[1, 2]], [[False, True], [True]], "1 texts but 2 masks"),
        ([[1, 2]], [[False]], "2 ids but 1 mask"),
        ([[]], [[]], "no tokens"),
        ([[1, 2]], [[True, True]], "first token"),
        ([[1, SIZE]], [[False, True]], "outside 0..260"),
        ([[1] * 257], [[False] * 257], "257 tokens, the model's context 256"),
    ],
)
def test_ids_that_would_be_scored_wrongly_are_refused(
    ids: list[list[int]], mask: list[list[bool]], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        score_tokens(llama(), ids, mask)


def by_hand(model: Any, ids: list[int], schemes: list[Sampling]) -> dict[str, np.ndarray]:
    """The second implementation: float64 NumPy on the logits of one unpadded text."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, :-1].double().numpy()
    target = np.array(ids[1:])
    row = np.arange(len(target))

    def logs(z: np.ndarray) -> np.ndarray:
        top = z.max(1, keepdims=True)
        return z - top - np.log(np.exp(z - top).sum(1, keepdims=True))

    logp = logs(logits)
    p = np.exp(logp)
    mean = (p * logp).sum(1)
    sampled = []
    for scheme in schemes:
        z = logits / scheme.temperature
        if scheme.top_k:
            z = np.where(z >= np.sort(z, 1)[:, [-scheme.top_k]], z, -np.inf)
        sampled.append(logs(z)[row, target])
    return {
        "logp": logp[row, target],
        "hit": logits.argmax(1) == target,
        "rank": (logits > logits[row, target][:, None]).sum(1),
        "mean": mean,
        "std": np.sqrt((p * logp**2).sum(1) - mean**2),
        "sampled": np.array(sampled),
    }


SCHEMES = [Sampling(), Sampling(0.7), Sampling(1.3, 40), Sampling(1.0, 1)]


@pytest.mark.parametrize("build", [llama, gpt2, qwen2])
def test_every_number_equals_numpy_on_the_logits(build: Any) -> None:
    model = build().eval()
    random = np.random.default_rng(1)
    texts = [random.integers(0, SIZE, n).tolist() for n in (40, 3, 17, 2)]
    # Texts that the model likes, so that hits and high ranks both occur.
    with torch.no_grad():
        texts.append(
            model.generate(torch.tensor([[5]]), max_new_tokens=12, do_sample=False, pad_token_id=0)[
                0
            ].tolist()
        )
    masks = [[False] + [True] * (len(t) - 1) for t in texts]
    scores = score_tokens(model, texts, masks, batch_size=3, sampling=SCHEMES)
    for ids, score in zip(texts, scores, strict=True):
        want = by_hand(model, ids, SCHEMES)
        assert score.positions.tolist() == list(range(1, len(ids)))
        assert score.ids.tolist() == ids[1:]
        assert score.rank.tolist() == want["rank"].tolist()
        assert score.hit.tolist() == want["hit"].tolist()
        for name in ("logp", "mean", "std", "sampled"):
            got = getattr(score, name)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, want[name], rtol=2e-4, atol=2e-4)
    assert scores[-1].hit.all()  # greedy generation is what teacher forcing says it is
    np.testing.assert_array_equal(scores[-1].sampled[3], 0)  # top-1 sampling is certain of it


@pytest.mark.parametrize("name", TOKENIZERS)
def test_padding_with_the_end_token_masks_nothing_real(name: str) -> None:
    tokenizer = copy.deepcopy(TOKENIZERS[name]())
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    [real] = encode_texts(tokenizer, [f"cat{tokenizer.eos_token} the{tokenizer.eos_token}"])
    assert [m for t, m in zip(real.ids, real.mask, strict=True) if t == end] == [True, True]
    texts = [[7, end, 9, end], [3] * 30]
    masks = [[False, True, True, True], [False] * 29 + [True]]
    together = score_tokens(llama(), texts, masks, batch_size=2)
    alone = [score_tokens(llama(), [t], [m])[0] for t, m in zip(texts, masks, strict=True)]
    assert together[0].ids.tolist() == [end, 9, end]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.logp, other.logp, atol=1e-5)


@given(st.integers(1, 7), st.integers(1, 3000), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_batching_changes_only_float_noise(batch: int, budget: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    texts = [random.integers(0, SIZE, n).tolist() for n in random.integers(1, 30, 6)]
    masks = [[False, *(random.random(len(t) - 1) < 0.6).tolist()] for t in texts]
    model = llama()
    one = score_tokens(model, texts, masks, 1)
    many = score_tokens(model, texts, masks, batch, logits_budget=budget)
    for a, b, mask in zip(one, many, masks, strict=True):
        assert len(a) == len(b) == sum(mask)
        assert a.positions.tolist() == np.flatnonzero(mask).tolist()
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


def test_long_texts_are_reduced_in_parts() -> None:
    """300 targets cross the 256 rows that are reduced at a time."""
    ids = np.random.default_rng(0).integers(0, SIZE, 301).tolist()
    model = llama(context=512)
    [score] = score_tokens(model, [ids], [[False] + [True] * 300])
    np.testing.assert_allclose(score.logp, by_hand(model, ids, [])["logp"], atol=2e-4, rtol=1e-4)


def test_one_forward_pass_a_text_and_the_mode_is_restored() -> None:
    model = llama().train()
    rows = 0

    def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal rows
        rows += len(kwargs["input_ids"])

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    texts = [[1, 2, 3 + i] for i in range(5)]
    score_tokens(model, texts, [[False, True, True]] * 4 + [[False, True, False]], 2)
    assert rows == 2  # four read 1 and 2 and are asked for what follows, the fifth only 1
    rows = 0
    score_tokens(model, [[i, 2, 3] for i in range(5)], [[False, True, True]] * 5, 2)
    assert rows == 5
    handle.remove()
    assert model.training


def test_letters_after_one_question_share_its_pass_and_keep_their_own_scores() -> None:
    model, question = llama(), [3, 1, 4, 1, 5]
    texts = [[*question, letter] for letter in (7, 8, 9)] + [[3, 1, 4, 1], [*question, 7, 2]]
    masks = [[False] * (len(text) - 1) + [True] for text in texts]
    masks[1][2] = True  # two targets, the last in the same place
    masks[4] = [False] * 5 + [True, False]  # what comes after the last target is not read
    shared = score_tokens(model, texts, masks, sampling=SCHEMES)
    for text, mask, found in zip(texts, masks, shared, strict=True):
        [alone] = score_tokens(model, [text], [mask], sampling=SCHEMES)
        for name in ("positions", "ids", "logp", "hit", "rank", "mean", "std", "sampled"):
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), atol=1e-5)


def test_a_peft_model_is_scored_with_its_adapter() -> None:
    base = llama()
    ids, mask = [[5, 6, 7, 8]], [[False, True, True, True]]
    before = score_tokens(base, ids, mask)[0].logp
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2))
    np.testing.assert_allclose(score_tokens(model, ids, mask)[0].logp, before, atol=1e-6)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    after = score_tokens(model, ids, mask)[0].logp
    assert np.abs(after - before).max() > 1e-3
    with model.disable_adapter():
        np.testing.assert_allclose(score_tokens(model, ids, mask)[0].logp, before, atol=1e-6)


def test_masks_without_targets_give_empty_scores() -> None:
    scores = score_tokens(
        llama(), [[1], [2, 3]], [[False], [False, False]], sampling=[Sampling(), Sampling(0.5)]
    )
    assert [len(s) for s in scores] == [0, 0]
    assert scores[0].sampled.shape == (2, 0)
    assert score_encoded(llama(), encode_texts(byte_tokenizer(), [])) == []
