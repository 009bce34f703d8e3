"""Selective synaptic dampening (Foster et al. 2024, arXiv 2308.07707).

Guarantees: importance is the diagonal of the empirical Fisher, the mean over texts of the squared
gradient of each text's log-likelihood. A weight that matters more than alpha times as much for what goes as
for everything is multiplied by min(1, lambda * I_all / I_forget). "Everything" is what goes and what
stays, as in the paper; so with a share s of texts to forget, I_forget / I_all is at most 1 / s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llm_unlearn.errors import NoEffect
from llm_unlearn.forget.method import Direct, Move
from llm_unlearn.forget.passes import Item, Passes


def dampened(value: Tensor, forget: Tensor, everything: Tensor, alpha: float, lam: float) -> Tensor:
    """The weights after dampening.

    Importance 8 against 1, alpha 4, lambda 2: the weight is multiplied by 2 * 1 / 8 = 1/4. With alpha 8 it
    stays, since 8 is not more than 8.
    """
    factor = (lam * everything / forget.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1.0)
    return torch.where(forget > alpha * everything, value * factor, value)


def fisher(
    passes: Passes, items: Sequence[Item], told: Callable[[], None] | None = None
) -> list[Tensor]:
    """Sum over texts of squared gradients of their log-likelihood, one tensor a parameter."""
    parameters = passes.weights.parameters()
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    for item in items:
        loss = passes.forward({"x": [item]})["x"].logps.sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for into, gradient in zip(total, found, strict=True):
            if gradient is not None:
                into += gradient.float().square()
        if told is not None:
            told()
    return total


class Dampening(Direct):
    """Which weights are chosen and how far they shrink; the strength divides `alpha`."""

    name: ClassVar[str] = "ssd"
    citation: ClassVar[str] = "Foster et al. 2024, arXiv 2308.07707"

    alpha: float = Field(default=4.0, gt=0)
    dampening: float = Field(default=1.0, gt=0, description="The paper's lambda.")

    def move(
        self,
        passes: Passes,
        forget: list[Item],
        retain: list[Item],
        seed: bytes,
        told: Callable[[int, int], None],
    ) -> Move:
        """Two Fisher diagonals; the weights are chosen when the strength is known."""
        weights = passes.weights
        total, done = len(forget) + len(retain), 0

        def step() -> None:
            nonlocal done
            done += 1
            told(done, total)

        gone = fisher(passes, forget, step)
        rest = fisher(passes, retain, step)
        forgotten = [g / len(forget) for g in gone]
        everything = [(g + r) / total for g, r in zip(gone, rest, strict=True)]
        names, start = weights.names, weights.state()
        ratio = max(
            float((f / e.clamp(min=torch.finfo(torch.float32).tiny)).max())
            for f, e in zip(forgotten, everything, strict=True)
        )

        def at(strength: float) -> dict[str, Tensor]:
            state = {
                name: dampened(start[name], f.cpu(), e.cpu(), self.alpha / strength, self.dampening)
                for name, f, e in zip(names, forgotten, everything, strict=True)
            }
            if all(state[name].equal(start[name]) for name in names):
                raise NoEffect(
                    f"No weight was dampened: the largest importance ratio is {ratio:.3g} (with "
                    f"{len(forget)} of {total} pieces to forget it is at most {total / len(forget):.3g}), "
                    f"alpha is {self.alpha / strength:.3g}, and a fresh adapter is zero already.",
                    "Lower alpha, or choose --full or a trained --adapter.",
                )
            return state

        return Move(at, {"largest importance ratio": ratio})
