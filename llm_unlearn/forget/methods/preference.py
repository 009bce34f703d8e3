"""DPO that prefers another answer: a refusal (IdkDPO) or an alternative fact (AltPO).

Guarantees: the DPO loss over whole sequences (Rafailov et al. 2023, arXiv 2305.18290), scaled by 2/beta
as NPO is, so that the two are comparable: NPO is this loss without the preferred term.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from llm_unlearn.forget.method import Asks, Groups, Stepwise
from llm_unlearn.forget.tensors import Predicted, given, nll, sequence_sums


def dpo_loss(preferred: Predicted, forget: Predicted, beta: float) -> Tensor:
    """2/beta * mean softplus(-beta * (preferred ratio - forget ratio)), ratios as sums of logs."""
    better, worse = (
        sequence_sums(side.logps - given(side.reference.logps), side.rows, side.sequences)
        for side in (preferred, forget)
    )
    return 2.0 / beta * softplus(-beta * (better - worse)).mean()


class _Preference(Stepwise):
    forget_reference: ClassVar[frozenset[Asks]] = frozenset({"logps"})

    beta: float = Field(default=0.1, gt=0)
    retain_weight: float = Field(default=1.0, ge=0)

    def needs_retain(self) -> bool:
        """Only with a weight."""
        return self.retain_weight > 0

    def loss(self, groups: Groups) -> Tensor:
        """Prefer the other answer, and stay right on the retained text."""
        loss = dpo_loss(groups.chosen, groups.forget, self.beta)
        return loss + self.retain_weight * nll(groups.kept) if self.retain_weight else loss


class IdkDPO(_Preference):
    """Prefer a refusal."""

    name: ClassVar[str] = "idk-dpo"
    citation: ClassVar[str] = (
        "Maini et al. 2024, arXiv 2401.06121; Zhang et al. 2024, arXiv 2404.05868"
    )
    answers: ClassVar[Literal["none", "refusal", "alternative"]] = "refusal"


class AltPO(_Preference):
    """Prefer what the model answers without the knowledge, or answers that are given."""

    name: ClassVar[str] = "altpo"
    citation: ClassVar[str] = "Mekala et al. 2024, arXiv 2409.13474"
    answers: ClassVar[Literal["none", "refusal", "alternative"]] = "alternative"
