"""SimNPO: NPO without a reference, by length-normalised likelihood (Fan et al. 2024, arXiv 2410.07163).

Guarantees: -2/beta * log sigmoid(-beta/|y| * log p - gamma), gamma outside of beta as in the paper; a
published implementation multiplies it by beta.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, nll, sequence_means


def simnpo_loss(forget: Predicted, beta: float, gamma: float) -> Tensor:
    """2/beta * mean softplus(beta * mean log p + gamma) over sequences."""
    means = sequence_means(forget.logps, forget.rows, forget.sequences)
    return 2.0 / beta * softplus(beta * means + gamma).mean()


class SimNPO(Stepwise):
    """Sharpness, margin, and the weights of both parts."""

    name: ClassVar[str] = "simnpo"
    citation: ClassVar[str] = "Fan et al. 2024, arXiv 2410.07163"

    beta: float = Field(default=4.5, gt=0)
    gamma: float = 0.0
    forget_weight: float = Field(default=1.0, gt=0)
    retain_weight: float = Field(default=1.0, ge=0)

    def needs_retain(self) -> bool:
        """Only with a weight."""
        return self.retain_weight > 0

    def loss(self, groups: Groups) -> Tensor:
        """Against the forget set, for the retained one."""
        loss = self.forget_weight * simnpo_loss(groups.forget, self.beta, self.gamma)
        return loss + self.retain_weight * nll(groups.kept) if self.retain_weight else loss
