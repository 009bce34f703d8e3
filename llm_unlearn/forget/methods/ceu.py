"""CE-U: descend to one's own distribution without the true token (Yang 2025, arXiv 2503.01224).

Guarantees: the target is a constant to the gradient and gives the true token nothing.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax

from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, given, nll


def ceu_loss(forget: Predicted, skip: int = 0) -> Tensor:
    """Mean cross-entropy with one's own softmax renormalised without the true token.

    Logits (0, 0, log 2), true token 2: the target is (1/2, 1/2, 0) and the loss log 4.

    Args:
        skip: so many first tokens of each sequence are left out, as the paper's footnote does with one:
            they say how answers begin. A sequence that has no more tokens keeps them.
    """
    logits = given(forget.logits)
    target = logits.detach().scatter(1, forget.targets[:, None], float("-inf")).softmax(-1)
    losses = -(target * log_softmax(logits, -1)).sum(-1)  # 0 * finite: logits are finite
    return losses[_after(forget, skip)].mean()


def _after(forget: Predicted, skip: int) -> Tensor:
    counts = torch.bincount(forget.rows, minlength=forget.sequences)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(forget.rows), device=forget.rows.device) - starts[forget.rows]
    return (place >= skip) | (counts[forget.rows] <= skip)


class CEU(Stepwise):
    """How many first tokens are left out; the paper uses no retained text."""

    name: ClassVar[str] = "ce-u"
    citation: ClassVar[str] = "Yang 2025, arXiv 2503.01224"

    skip_first: int = Field(default=1, ge=0, le=16)
    retain_weight: float = Field(default=0.0, ge=0)

    def needs_retain(self) -> bool:
        """Only with a weight."""
        return self.retain_weight > 0

    def loss(self, groups: Groups) -> Tensor:
        """Away from the true tokens."""
        loss = ceu_loss(groups.forget, self.skip_first)
        return loss + self.retain_weight * nll(groups.kept) if self.retain_weight else loss
