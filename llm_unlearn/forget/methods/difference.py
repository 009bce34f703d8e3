"""Gradient difference: ascend on what goes, descend on what stays (Liu et al. 2022, arXiv 2203.12817).

Guarantees: both means run over predicted tokens only.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, nll


def difference_loss(
    forget: Predicted, retain: Predicted, forget_weight: float, retain_weight: float
) -> Tensor:
    """retain_weight * nll(retain) - forget_weight * nll(forget)."""
    return retain_weight * nll(retain) - forget_weight * nll(forget)


class GradientDifference(Stepwise):
    """The two weights."""

    name: ClassVar[str] = "graddiff"
    citation: ClassVar[str] = "Liu, Liu and Stone 2022, arXiv 2203.12817"

    forget_weight: float = Field(default=1.0, gt=0)
    retain_weight: float = Field(default=1.0, gt=0)

    def loss(self, groups: Groups) -> Tensor:
        """Ascend on one, descend on the other."""
        return difference_loss(groups.forget, groups.kept, self.forget_weight, self.retain_weight)
