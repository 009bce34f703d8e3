"""SatImp: ascent weighted by saturation and by importance (Yang et al. 2025, arXiv 2505.11953).

Guarantees: the weight p^beta1 * (1 - p)^beta2 is a constant to the gradient.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, nll


def satimp_loss(forget: Predicted, beta1: float, beta2: float) -> Tensor:
    """mean p^beta1 (1 - p)^beta2 log p: p 1/2 with both 1 gives -log(2)/4."""
    logps = forget.logps
    p = logps.detach().exp().clamp(max=1.0)
    return (p**beta1 * (1.0 - p) ** beta2 * logps).mean()


class SatImp(Stepwise):
    """Both exponents, and how much the retained text weighs."""

    name: ClassVar[str] = "satimp"
    citation: ClassVar[str] = "Yang et al. 2025, arXiv 2505.11953"

    beta1: float = Field(default=5.0, ge=0)
    beta2: float = Field(default=1.0, ge=0)
    retain_weight: float = Field(default=0.1, ge=0)

    def needs_retain(self) -> bool:
        """Only with a weight."""
        return self.retain_weight > 0

    def loss(self, groups: Groups) -> Tensor:
        """Weighted ascent, and descent on the retained text."""
        loss = satimp_loss(groups.forget, self.beta1, self.beta2)
        return loss + self.retain_weight * nll(groups.kept) if self.retain_weight else loss
