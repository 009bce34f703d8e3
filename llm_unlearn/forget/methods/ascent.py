"""Gradient ascent: climb the loss of what is to be forgotten (Jang et al. 2023, arXiv 2210.01504).

Guarantees: the published loss and nothing else. Nothing holds it back: it wrecks a model unless it is
stopped in time, which is what the run's rules are for.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, nll


def ascent_loss(forget: Predicted) -> Tensor:
    """log p of the tokens to forget, averaged: two tokens of p 1/2 and 1/8 give -2 log 2."""
    return -nll(forget)


class GradientAscent(Stepwise):
    """No settings of its own."""

    name: ClassVar[str] = "ga"
    citation: ClassVar[str] = "Jang et al. 2023, arXiv 2210.01504"
    uses_retain: ClassVar[bool] = False

    def loss(self, groups: Groups) -> Tensor:
        """Ascend on the forget set."""
        return ascent_loss(groups.forget)
