"""UNDIAL: distil from oneself with the true token's logit lowered (Dong et al. 2024, arXiv 2402.10052).

Guarantees: only predicted tokens take part. Published code averages over prompt and padding, and its
label -100 lowers a token that has nothing to do with the text.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax

from llm_unlearn.forget.method import Asks, Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, given, nll


def undial_loss(forget: Predicted, strength: float) -> Tensor:
    """Mean cross-entropy with softmax(reference logits - strength on the true token).

    Reference logits (0, 0), true token 0, strength log 3: the target is (1/4, 3/4).
    """
    lowered = torch.scatter_add(
        given(forget.reference.logits),
        1,
        forget.targets[:, None],
        torch.full_like(forget.targets[:, None], -strength, dtype=torch.float32),
    )
    target = lowered.softmax(-1)
    return -(target * log_softmax(given(forget.logits), -1)).sum(-1).mean()


class UNDIAL(Stepwise):
    """By how much the true token's logit is lowered; the paper uses no retained text."""

    name: ClassVar[str] = "undial"
    citation: ClassVar[str] = "Dong et al. 2024, arXiv 2402.10052"
    forget_reference: ClassVar[frozenset[Asks]] = frozenset({"logits"})

    lowering: float = Field(default=10.0, gt=0)
    retain_weight: float = Field(default=0.0, ge=0)

    def needs_retain(self) -> bool:
        """Only with a weight."""
        return self.retain_weight > 0

    def loss(self, groups: Groups) -> Tensor:
        """Distil; and stay right on the retained text if asked."""
        loss = undial_loss(groups.forget, self.lowering)
        return loss + self.retain_weight * nll(groups.kept) if self.retain_weight else loss
