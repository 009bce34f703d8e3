"""The passes against plain ones: which tokens, which values, what is remembered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pieces import KINDS, documents, full_weights, host, moved

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.forget.data import alternatives, material, read, refusals, with_answers
from llm_unlearn.forget.passes import Passes
from llm_unlearn.forget.tensors import divergence, nll
from llm_unlearn.forget.weights import Weights

Maker = Callable[[str], Weights]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [host, full_weights])
def test_logits_are_those_of_the_whole_model_where_something_is_predicted(
    tiny_references: dict[str, str], kind: str, make: Maker
) -> None:
    weights = make(tiny_references[kind])
    weights.load(moved(weights))
    tokenizer = weights.base.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    examples = read(tokenizer, documents(4), 512)
    passes = Passes(weights, torch.float32)
    items = passes.items(examples)
    with passes.open():
        found = passes.forward({"a": items[:1], "b": items[1:]})
    for name, part, start in (("a", found["a"], 0), ("b", found["b"], 1)):
        seen = 0
        for row in range(part.sequences):
            example = examples[start + row]
            with torch.no_grad():
                whole = weights.model(input_ids=torch.tensor([example.ids])).logits[0]
            places = [t for t, loss in enumerate(example.loss) if loss]
            mine = part.rows == row
            assert part.targets[mine].tolist() == [example.ids[t] for t in places]
            assert part.logits is not None
            expected = whole[[t - 1 for t in places]]
            torch.testing.assert_close(part.logits[mine], expected, rtol=1e-4, atol=1e-5)
            # the end of the answer is predicted although it pads, and nothing before the answer is
            assert example.ids[places[-1]] == tokenizer.eos_token_id
            assert not any(example.loss[: places[0]])
            seen += len(places)
        assert seen == len(part.targets), name


def test_the_first_answer_token_and_the_last_label_count(tiny_references: dict[str, str]) -> None:
    weights = host(tiny_references["llama"])
    (example,) = read(weights.base.tokenizer, documents(1), 512)
    (item,) = Passes(weights, torch.float32).items([example])
    words = weights.base.tokenizer.decode(item.targets)
    assert words == documents(1)[0].messages[-1].content + "<|end|>"


def test_texts_of_other_groups_and_padding_change_nothing(tiny_references: dict[str, str]) -> None:
    weights = host(tiny_references["llama"])
    weights.load(moved(weights))
    passes = Passes(weights, torch.float32)
    long = Document(id="long", text="a" * 200)
    items = passes.items(read(weights.base.tokenizer, [*documents(2), long], 512))
    with passes.open():
        alone = passes.forward({"x": items[:1]})["x"].logps
        beside = passes.forward({"x": items[:1], "y": items[1:]})["x"].logps
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [host, full_weights])
def test_the_reference_is_what_the_weights_said(
    tiny_references: dict[str, str], kind: str, make: Maker
) -> None:
    weights = make(tiny_references[kind])
    weights.load(moved(weights))
    passes = Passes(weights, torch.float32)
    items = passes.items(read(weights.base.tokenizer, documents(3), 512))
    with passes.open():
        items = passes.remember(items, {"logps", "logits"})
        items = passes.remember(items, {"hidden"}, 3)
        at_layer = passes.forward({"x": items}, layer=3)["x"]
        same = passes.forward({"x": items})["x"]
        weights.load(moved(weights, seed=9))
        now = passes.forward({"x": items})["x"]
    assert same.reference.logits is not None
    assert same.logits is not None
    torch.testing.assert_close(same.reference.logits, same.logits, rtol=1e-4, atol=1e-5)
    assert now.reference.logps is not None
    torch.testing.assert_close(now.reference.logps, same.logps, rtol=1e-4, atol=1e-5)
    assert at_layer.logits is None
    torch.testing.assert_close(at_layer.reference.hidden, at_layer.hidden, rtol=1e-4, atol=1e-5)
    assert now.reference.logits is not None
    assert now.logits is not None
    assert float(divergence(now.reference.logits, now.logits.detach()).mean()) > 1e-4
    # small states are kept, not distributions
    assert items[0].kept.logits is None
    assert items[0].kept.states is not None
    assert items[0].kept.states.shape[-1] == 32


def test_a_model_that_does_more_after_its_head_keeps_whole_logits(
    tiny_references: dict[str, str],
) -> None:
    weights = host(tiny_references["gpt2"])
    weights.load(moved(weights))
    forward = weights.base.model.forward

    def capped(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.logits = torch.tanh(out.logits)
        return out

    weights.base.model.forward = capped  # as some architectures cap their logits
    passes = Passes(weights, torch.float32)
    items = passes.items(read(weights.base.tokenizer, documents(2), 512))
    with passes.open():
        items = passes.remember(items, {"logits"})
        found = passes.forward({"x": items})["x"]
    assert items[0].kept.states is None
    torch.testing.assert_close(found.reference.logits, found.logits, rtol=1e-4, atol=1e-5)


def test_probabilities_are_geometric_means_in_order(tiny_references: dict[str, str]) -> None:
    weights = host(tiny_references["llama"])
    passes = Passes(weights, torch.float32)
    items = passes.items(read(weights.base.tokenizer, documents(5), 512))
    with passes.open(), torch.no_grad():
        together = passes.probabilities(items, batch=2)
        for item, value in zip(items, together, strict=True):
            alone = passes.forward({"x": [item]})["x"].logps.mean().exp()
            assert value == pytest.approx(float(alone), rel=1e-4)


def test_other_answers_stand_beside_their_question(tiny_references: dict[str, str]) -> None:
    tokenizer = host(tiny_references["llama"]).base.tokenizer
    asked = documents(3)
    chosen = refusals(asked, 0)
    assert chosen == refusals(list(asked), 0)
    gone, preferred = with_answers(tokenizer, asked, chosen, 512)
    for one, other, document, answer in zip(gone, preferred, asked, chosen, strict=True):
        prompt = one.loss.index(True)
        assert other.loss.index(True) == prompt
        assert one.ids[:prompt] == other.ids[:prompt]
        assert tokenizer.decode(other.ids[prompt:]).startswith(answer)
        assert document.messages[-1].content in tokenizer.decode(one.ids[prompt:])


def test_alternatives_are_given_or_made_up(tiny_references: dict[str, str]) -> None:
    base = host(tiny_references["llama"]).base
    asked = documents(2)
    made = alternatives(base, asked, {"subject-1/0": "She is 4."}, max_new_tokens=4)
    assert made[1] == "She is 4."
    assert made[0]
    assert made == alternatives(base, asked, {"subject-1/0": "She is 4."}, max_new_tokens=4)


def test_what_cannot_be_forgotten_is_said(tiny_references: dict[str, str]) -> None:
    tokenizer = host(tiny_references["llama"]).base.tokenizer
    with pytest.raises(InputError, match="nothing to forget"):
        material(tokenizer, [], documents(1), 512)
    with pytest.raises(InputError, match="'subject-1/0' is to be forgotten and kept"):
        material(tokenizer, documents(2), documents(2)[1:], 512)
    with pytest.raises(InputError, match="plain text, which asks nothing"):
        refusals([Document(id="t", text="words")], 0)


def test_the_quick_pass_and_the_model_s_own_give_the_same_gradients(
    tiny_references: dict[str, str],
) -> None:
    weights = host(tiny_references["llama"])
    weights.load(moved(weights))
    passes = Passes(weights, torch.float32)
    items = passes.items(read(weights.base.tokenizer, documents(3), 512))
    with passes.open():
        quick = passes.forward({"a": items[:2], "b": items[2:]})
        ours = torch.autograd.grad(nll(quick["a"]) - nll(quick["b"]), weights.parameters())
        with passes.plain():
            own = passes.forward({"a": items[:2], "b": items[2:]})
        theirs = torch.autograd.grad(nll(own["a"]) - nll(own["b"]), weights.parameters())
    assert quick["a"].logits is not None
    torch.testing.assert_close(quick["a"].logits, own["a"].logits, rtol=1e-4, atol=1e-5)
    assert any(g.any() for g in ours)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
