"""Negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868).

Guarantees: equation (3) of the paper, over whole sequences: 2/beta * mean log(1 + r^beta) with r the ratio
of the sequence's probability now to the reference's. As beta goes to 0 its gradient is that of gradient
ascent on sequence sums.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import softplus

from llm_unlearn.forget.method import Asks, Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, given, nll, sequence_sums


def npo_loss(forget: Predicted, beta: float) -> Tensor:
    """2/beta * mean softplus(beta * (log p - log p_reference)).

    Unchanged weights give 2/beta * log 2, whatever the text.
    """
    ratio = sequence_sums(
        forget.logps - given(forget.reference.logps), forget.rows, forget.sequences
    )
    return 2.0 / beta * softplus(beta * ratio).mean()


class NPO(Stepwise):
    """How sharply it saturates, and how much the retained text weighs."""

    name: ClassVar[str] = "npo"
    citation: ClassVar[str] = "Zhang et al. 2024, arXiv 2404.05868"
    forget_reference: ClassVar[frozenset[Asks]] = frozenset({"logps"})

    beta: float = Field(default=0.1, gt=0)
    retain_weight: float = Field(default=1.0, ge=0)

    @field_validator("beta")
    @classmethod
    def _moderate(cls, value: float) -> float:
        if value > 10:
            raise ValueError(
                "with beta above 10 the loss is flat after one step and nothing is forgotten; "
                "use 0.05 to 1"
            )
        return value

    def needs_retain(self) -> bool:
        """Only with a weight."""
        return self.retain_weight > 0

    def loss(self, groups: Groups) -> Tensor:
        """Against the forget set, for the retained one."""
        loss = npo_loss(groups.forget, self.beta)
        return loss + self.retain_weight * nll(groups.kept) if self.retain_weight else loss
