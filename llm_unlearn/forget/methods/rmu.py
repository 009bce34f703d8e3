"""RMU: steer the hidden states of what goes to noise (Li et al. 2024, arXiv 2403.03218), and its adaptive
form, which scales the noise by the state's own length (Huu-Tien et al. 2024, arXiv 2408.06223).

Guarantees: the states compared are those that predict the tokens to forget or keep (published code for
conversations takes the states of the answer's own tokens, so the one that predicts the first of them is
left alone). The noise is uniform in [0, 1), of length 1, one vector a run, a function of the
seed. Layers above the steered one are not touched.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llm_unlearn.forget.method import Asks, Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, given


def direction(width: int, seed: bytes) -> Tensor:
    """The unit vector (H,) that hidden states are steered to."""
    number = int.from_bytes(hashlib.sha256(b"rmu" + seed).digest()[:7], "big")
    vector = torch.rand(width, generator=torch.Generator().manual_seed(number))
    unit: Tensor = vector / vector.norm()
    return unit


def rmu_loss(forget: Predicted, retain: Predicted, target: Tensor, weight: float) -> Tensor:
    """mean (h - target)^2 on what goes + weight * mean (h - h_reference)^2 on what stays.

    Args:
        target: (H,) for all tokens or (N, H) for each.
    """
    gone = (given(forget.hidden) - target).square().mean()
    kept = (given(retain.hidden) - given(retain.reference.hidden)).square().mean()
    return gone + weight * kept


class RMU(Stepwise):
    """How long the noise is, how much the retained states weigh, and which layer is steered."""

    name: ClassVar[str] = "rmu"
    citation: ClassVar[str] = "Li et al. 2024, arXiv 2403.03218"
    forget_reference: ClassVar[frozenset[Asks]] = frozenset({"hidden"})
    retain_reference: ClassVar[frozenset[Asks]] = frozenset({"hidden"})

    steering: float = Field(default=20.0, gt=0)
    retain_weight: float = Field(default=100.0, gt=0)
    layer: int = Field(
        default=2, ge=0, description="The steered layer, counted from the first that trains."
    )
    vector: tuple[float, ...] = Field(default=(), exclude=True, repr=False)

    def stops_at(self, first: int, count: int) -> int | None:
        """The steered layer, the last one if there are not so many."""
        return min(first + self.layer, count - 1)

    def prepare(self, width: int, seed: bytes) -> Stepwise:
        """With the run's noise."""
        return self.model_copy(update={"vector": tuple(direction(width, seed).tolist())})

    def loss(self, groups: Groups) -> Tensor:
        """Steer what goes, hold what stays."""
        hidden = given(groups.forget.hidden)
        target = self._scale(groups.forget) * hidden.new_tensor(self.vector)
        return rmu_loss(groups.forget, groups.kept, target, self.retain_weight)

    def _scale(self, forget: Predicted) -> float | Tensor:
        return self.steering


class AdaptiveRMU(RMU):
    """The same with noise of `steering` times the length of the reference's state at that token."""

    name: ClassVar[str] = "rmu-adaptive"
    citation: ClassVar[str] = "Huu-Tien et al. 2024, arXiv 2408.06223"

    steering: float = Field(default=5.0, gt=0)

    def _scale(self, forget: Predicted) -> float | Tensor:
        lengths: Tensor = given(forget.reference.hidden).norm(dim=-1, keepdim=True)
        return self.steering * lengths
