"""Every loss against values worked by hand, and the shared arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llm_unlearn.errors import InputError
from llm_unlearn.forget.method import Groups
from llm_unlearn.forget.methods import METHODS, method
from llm_unlearn.forget.methods.ascent import ascent_loss
from llm_unlearn.forget.methods.ascent_kl import ascent_kl_loss
from llm_unlearn.forget.methods.ceu import ceu_loss
from llm_unlearn.forget.methods.dampening import dampened
from llm_unlearn.forget.methods.difference import difference_loss
from llm_unlearn.forget.methods.negation import negated
from llm_unlearn.forget.methods.npo import npo_loss
from llm_unlearn.forget.methods.pdu import PDU, excess, margin_loss, raised
from llm_unlearn.forget.methods.preference import dpo_loss
from llm_unlearn.forget.methods.rmu import AdaptiveRMU, direction, rmu_loss
from llm_unlearn.forget.methods.satimp import satimp_loss
from llm_unlearn.forget.methods.simnpo import simnpo_loss
from llm_unlearn.forget.methods.undial import undial_loss
from llm_unlearn.forget.methods.wga import wga_loss
from llm_unlearn.forget.tensors import Predicted, Reference, divergence, nll

LOG2 = math.log(2)


def _said(p: list[float], rows: list[int], reference: list[float] | None = None) -> Predicted:
    """Tokens of these probabilities: two-token vocabulary, the target is token 0."""
    ps = torch.tensor(p)
    logits = torch.stack([ps.log(), (1 - ps).log()], dim=1).requires_grad_(True)
    kept = Reference()
    if reference is not None:
        qs = torch.tensor(reference)
        kept = Reference(qs.log(), torch.stack([qs.log(), (1 - qs).log()], dim=1))
    return Predicted(
        torch.zeros(len(p), dtype=torch.long),
        torch.tensor(rows),
        max(rows) + 1,
        logits,
        reference=kept,
    )


def _close(found: Tensor, expected: float) -> None:
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_ascent_and_difference() -> None:
    said = _said([1 / 2, 1 / 8], [0, 1])
    _close(nll(said), 2 * LOG2)  # (1 + 3) / 2 bits
    _close(ascent_loss(said), -2 * LOG2)
    kept = _said([1 / 4], [0])
    _close(difference_loss(said, kept, 0.5, 3.0), 3 * 2 * LOG2 - 0.5 * 2 * LOG2)


def test_a_long_text_weighs_by_its_tokens() -> None:
    # three tokens of 1/2 in one text, one of 1/16 in another: (3 * 1 + 4) / 4 bits, not (1 + 4) / 2
    _close(nll(_said([1 / 2] * 3 + [1 / 16], [0, 0, 0, 1])), 7 / 4 * LOG2)


def test_kl_is_that_of_the_reference_to_the_current() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = log 2 - (log 3) / 2 - ... = 1/2 log 2 + 1/2 log(2/3)
    said = _said([1 / 4], [0], reference=[1 / 2])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    _close(divergence(said.reference.logits, said.logits)[0], expected)  # type: ignore[arg-type]
    _close(ascent_kl_loss(_said([1 / 8], [0]), said, 2.0), 2 * expected - 3 * LOG2)


def test_npo_by_whole_sequences() -> None:
    # ratios of the sequences: (1/4 * 1/2) / (1/2 * 1/2) = 1/2, and 1
    said = _said([1 / 4, 1 / 2, 1 / 8], [0, 0, 1], reference=[1 / 2, 1 / 2, 1 / 8])
    _close(npo_loss(said, 1.0), 2 * (math.log(1 + 1 / 2) + math.log(2)) / 2)
    _close(npo_loss(said, 0.5), 4 * (math.log(1 + math.sqrt(1 / 2)) + math.log(2)) / 2)


def test_npo_with_small_beta_is_gradient_ascent() -> None:
    said = _said([1 / 4, 1 / 2], [0, 1], reference=[1 / 3, 2 / 3])
    assert said.logits is not None
    (ours,) = torch.autograd.grad(npo_loss(said, 1e-4), said.logits)
    (plain,) = torch.autograd.grad(ascent_loss(said), said.logits)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)


def test_simnpo_normalises_by_length_and_keeps_gamma_outside_of_beta() -> None:
    said = _said([1 / 2, 1 / 8, 1 / 4], [0, 0, 1])  # mean logs: -2 log 2 in both sequences
    x = torch.tensor(-(2.0 * -2 * LOG2) - 0.5)
    _close(simnpo_loss(said, 2.0, 0.5), float(-2 / 2 * logsigmoid(x)))


def test_dpo_prefers_the_other_answer() -> None:
    forget = _said([1 / 8], [0], reference=[1 / 4])  # ratio 1/2
    preferred = _said([1 / 2, 1 / 2], [0, 0], reference=[1 / 4, 1 / 4])  # ratio 4
    # sigmoid(log 8) = 8/9
    _close(dpo_loss(preferred, forget, 1.0), -2 * math.log(8 / 9))


def test_undial_lowers_the_true_token_only() -> None:
    said = _said([1 / 2], [0], reference=[1 / 2])
    _close(undial_loss(said, math.log(3)), LOG2)  # any target against (1/2, 1/2)
    said = _said([1 / 5], [0], reference=[1 / 2])
    expected = -(1 / 4 * math.log(1 / 5) + 3 / 4 * math.log(4 / 5))
    _close(undial_loss(said, math.log(3)), expected)


def test_undial_is_at_rest_where_its_target_is() -> None:
    said = _said([1 / 4], [0], reference=[1 / 2])
    assert said.logits is not None
    (gradient,) = torch.autograd.grad(undial_loss(said, math.log(3)), said.logits)
    torch.testing.assert_close(gradient, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_reweighted_ascent_holds_its_weights_constant() -> None:
    said = _said([1 / 2, 1 / 4], [0, 0])
    _close(wga_loss(said, 1.0), -(1 / 2 * LOG2 + 1 / 4 * 2 * LOG2) / 2)
    _close(wga_loss(said, 0.0), float(ascent_loss(said).detach()))
    _close(satimp_loss(said, 1.0, 1.0), -(1 / 4 * LOG2 + 3 / 16 * 2 * LOG2) / 2)
    assert said.logits is not None
    (gradient,) = torch.autograd.grad(wga_loss(said, 1.0), said.logits)
    # d log p / d logit = 1 - p, weighted by p, over 2 tokens
    torch.testing.assert_close(gradient[:, 0], torch.tensor([1 / 8, 3 / 32]))


def test_ceu_gives_the_true_token_nothing() -> None:
    logits = torch.tensor([[0.0, 0.0, LOG2]], requires_grad=True)
    said = Predicted(torch.tensor([2]), torch.tensor([0]), 1, logits)
    _close(ceu_loss(said), math.log(4))
    (gradient,) = torch.autograd.grad(ceu_loss(said), logits)
    # p - q with p = (1/4, 1/4, 1/2), q = (1/2, 1/2, 0): bounded, unlike ascent
    torch.testing.assert_close(gradient, torch.tensor([[-1 / 4, -1 / 4, 1 / 2]]))


def test_ceu_leaves_out_the_first_tokens_if_others_follow() -> None:
    said = _said([1 / 2, 1 / 8, 1 / 4], [0, 0, 1])
    # the target is all on token 1: losses -log(1 - p); the first token of a single one stays
    _close(ceu_loss(said, 1), -(math.log(7 / 8) + math.log(3 / 4)) / 2)
    _close(ceu_loss(said, 0), -(math.log(1 / 2) + math.log(7 / 8) + math.log(3 / 4)) / 3)


def test_pdu_flattens_within_its_constraint() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    said = Predicted(torch.tensor([0, 0]), torch.tensor([0, 0]), 1, logits)
    _close(margin_loss(said), 2.0)  # (4 + 0) / 2
    kept = _said([1 / 8], [0], reference=[1 / 4])
    _close(excess(kept, 0.25, 0.0), 3 * LOG2 - 1.25 * 2 * LOG2)
    assert raised(1.0, -3.0, 0.5) == 0.0
    assert raised(1.0, 2.0, 0.5) == 2.0


def test_pdu_carries_its_multiplier() -> None:
    pdu = PDU(forget_weight=1.0, multiplier=2.0, slack=0.0, floor=0.0)
    groups = Groups(_said([1 / 2], [0]), _said([1 / 8], [0], reference=[1 / 4]))
    _close(pdu.loss(groups), 2 * LOG2)  # margin 0, excess log 2, multiplier 2
    assert groups.memory["multiplier"] == pytest.approx(2 + LOG2)
    _close(pdu.loss(groups), (2 + LOG2) * LOG2)


def test_rmu_steers_and_holds() -> None:
    forget = Predicted(torch.tensor([0]), torch.tensor([0]), 1, hidden=torch.tensor([[1.0, 3.0]]))
    retain = Predicted(
        torch.tensor([0]),
        torch.tensor([0]),
        1,
        hidden=torch.tensor([[1.0, 1.0]]),
        reference=Reference(hidden=torch.tensor([[1.0, 2.0]])),
    )
    # ((1 - 0)^2 + (3 - 2)^2) / 2 + 4 * (0 + 1) / 2
    _close(rmu_loss(forget, retain, torch.tensor([0.0, 2.0]), 4.0), 3.0)


def test_rmu_noise_is_a_positive_unit_vector_of_the_seed() -> None:
    unit = direction(16, b"a")
    assert float(unit.norm()) == pytest.approx(1.0)
    assert bool((unit >= 0).all())
    assert direction(16, b"a").equal(unit)
    assert not direction(16, b"b").equal(unit)


def test_adaptive_rmu_scales_by_the_reference_s_length() -> None:
    rmu = AdaptiveRMU(steering=2.0).prepare(2, b"x")
    unit = direction(2, b"x")
    hidden = 2.0 * 5.0 * unit[None]  # exactly where it is steered to
    forget = Predicted(
        torch.tensor([0]),
        torch.tensor([0]),
        1,
        hidden=hidden,
        reference=Reference(hidden=torch.tensor([[3.0, 4.0]])),
    )
    retain = Predicted(
        torch.tensor([0]),
        torch.tensor([0]),
        1,
        hidden=hidden,
        reference=Reference(hidden=hidden),
    )
    _close(rmu.loss(Groups(forget, retain)), 0.0)


def test_dampening_chooses_and_shrinks() -> None:
    value, forget = torch.ones(4), torch.tensor([8.0, 4.0, 8.0, 0.0])
    everything = torch.tensor([1.0, 1.0, 0.0, 0.0])
    # 8 > 4: 2 * 1 / 8; 4 is not more than 4; importance for the rest 0: to nothing; 0 > 0 is false
    found = dampened(value, forget, everything, alpha=4.0, lam=2.0)
    torch.testing.assert_close(found, torch.tensor([0.25, 1.0, 0.0, 1.0]))
    # lambda never makes a weight larger
    grown = dampened(value, forget, everything, alpha=4.0, lam=100.0)
    assert float(grown.max()) == 1.0


def test_negation_goes_the_other_way() -> None:
    found = negated({"b": torch.tensor([1.0])}, {"b": torch.tensor([3.0])}, 2.0)
    assert found["b"].tolist() == [-3.0]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_paper_and_settings_that_repeat(name: str) -> None:
    made = method(name)
    assert made.name == name
    assert "20" in made.citation
    assert method(name, made.model_dump()) == made


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("nope", {}, "There is no method 'nope'"),
        ("npo", {"beta": 99}, "nothing is forgotten; use 0.05 to 1"),
        ("npo", {"gamma": 1}, "Settings of npo: beta, retain_weight"),
        ("ga", {"beta": 1}, "Settings of ga: none"),
    ],
)
def test_a_wrong_setting_says_what_it_does_and_what_to_do(
    name: str, settings: dict[str, float], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        method(name, settings)
    assert words in str(caught.value)
