"""Fine-tuning on the rest: hope that what is not rehearsed fades (Maini et al. 2024, arXiv 2401.06121).

Guarantees: the text to forget is never read by a step; only the stopping rules look at it. A run has as
many steps as one of another method (an epoch is a pass over what goes), so with much to keep and few
epochs it reads less than all of it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.tensors import nll


class FineTune(Stepwise):
    """No settings of its own."""

    name: ClassVar[str] = "finetune"
    uses_forget: ClassVar[bool] = False
    citation: ClassVar[str] = "Maini et al. 2024, arXiv 2401.06121"

    def loss(self, groups: Groups) -> Tensor:
        """nll of the retained text."""
        return nll(groups.kept)
