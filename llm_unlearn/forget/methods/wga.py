"""WGA: gradient ascent weighted by the token's own probability (Wang et al. 2025, arXiv 2502.19301).

Guarantees: the weight p^beta is a constant to the gradient; what is forgotten already stops pushing.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, nll


def wga_loss(forget: Predicted, beta: float) -> Tensor:
    """mean p^beta * log p, p^beta held constant: p 1/2 and beta 1 give -log(2)/2."""
    logps = forget.logps
    return ((beta * logps.detach()).exp() * logps).mean()


class WGA(Stepwise):
    """The exponent, and how much the retained text weighs."""

    name: ClassVar[str] = "wga"
    citation: ClassVar[str] = "Wang et al. 2025, arXiv 2502.19301"

    beta: float = Field(default=1.0, ge=0)
    retain_weight: float = Field(default=1.0, ge=0)

    def needs_retain(self) -> bool:
        """Only with a weight."""
        return self.retain_weight > 0

    def loss(self, groups: Groups) -> Tensor:
        """Weighted ascent, and descent on the retained text."""
        loss = wga_loss(groups.forget, self.beta)
        return loss + self.retain_weight * nll(groups.kept) if self.retain_weight else loss
