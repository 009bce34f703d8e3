"""PDU: flatten the logits under a hard constraint on retained text (Entesari et al. 2025,
arXiv 2506.05314).

Guarantees: minimises the squared margin between the largest and the mean logit, subject to the
retained loss staying within (1 + slack) of the reference's; the multiplier rises while the constraint is
broken and falls while it holds, never below 0. Published code takes the margin over prompt and padding too.
The constraint is estimated on each batch against the reference's loss on that same batch.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from llm_unlearn.forget.method import Asks, Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, given, nll


def margin_loss(forget: Predicted) -> Tensor:
    """mean (max logit - mean logit)^2: logits (3, 0, 0) give (3 - 1)^2 = 4."""
    logits = given(forget.logits)
    return (logits.amax(-1) - logits.mean(-1)).square().mean()


def excess(retain: Predicted, slack: float, floor: float) -> Tensor:
    """By how much the retained loss exceeds what is allowed: negative while the constraint holds."""
    allowed = (-given(retain.reference.logps).mean() * (1.0 + slack)).clamp(min=floor)
    return nll(retain) - allowed


def raised(multiplier: float, excess: float, step: float) -> float:
    """The multiplier after one dual step: max(0, multiplier + step * excess)."""
    return max(0.0, multiplier + step * excess)


class PDU(Stepwise):
    """Where the multiplier starts, how fast it moves, and what the constraint allows."""

    name: ClassVar[str] = "pdu"
    citation: ClassVar[str] = "Entesari et al. 2025, arXiv 2506.05314"
    retain_reference: ClassVar[frozenset[Asks]] = frozenset({"logps"})

    forget_weight: float = Field(default=0.01, gt=0)
    multiplier: float = Field(default=1.0, ge=0)
    dual_step: float = Field(default=1.0, gt=0)
    slack: float = Field(default=0.1, ge=0)
    floor: float = Field(
        default=0.05,
        ge=0,
        description="A loss that is always allowed: memorised text has almost none.",
    )

    def loss(self, groups: Groups) -> Tensor:
        """One step of the Lagrangian, then one of its multiplier."""
        broken = excess(groups.kept, self.slack, self.floor)
        multiplier = groups.memory.get("multiplier", self.multiplier)
        groups.memory["multiplier"] = raised(multiplier, float(broken.detach()), self.dual_step)
        return self.forget_weight * margin_loss(groups.forget) + multiplier * broken
