"""Gradient ascent, kept near the reference on retained text (Yao et al. 2024; Maini et al. 2024).

Guarantees: KL(reference || current) per predicted token of the retained text. Published code averages
it over prompt and padding too, which shrinks it by an arbitrary factor.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from llm_unlearn.forget.method import Asks, Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, divergence, given, nll


def ascent_kl_loss(forget: Predicted, retain: Predicted, weight: float) -> Tensor:
    """weight * mean KL on retained tokens - nll(forget)."""
    kept = divergence(given(retain.reference.logits), given(retain.logits)).mean()
    return weight * kept - nll(forget)


class AscentKL(Stepwise):
    """How much the divergence weighs."""

    name: ClassVar[str] = "ga-kl"
    citation: ClassVar[str] = (
        "Yao et al. 2024, arXiv 2310.10683; Maini et al. 2024, arXiv 2401.06121"
    )
    retain_reference: ClassVar[frozenset[Asks]] = frozenset({"logits"})

    retain_weight: float = Field(default=1.0, gt=0)

    def loss(self, groups: Groups) -> Tensor:
        """Ascend, and stay near."""
        return ascent_kl_loss(groups.forget, groups.kept, self.retain_weight)
