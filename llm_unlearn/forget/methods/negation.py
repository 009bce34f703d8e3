"""Task-vector negation: learn the text once more, then go the other way (Ilharco et al. 2023,
arXiv 2212.04089).

Guarantees: on an adapter the vector is that of the product B A, exactly: A stays, only B learns, and a
product is linear in B. (Negating A and B together would subtract something else.) On full weights it
is the difference of all of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from llm_unlearn.forget.method import Direct, Move
from llm_unlearn.forget.passes import Item, Passes
from llm_unlearn.forget.tensors import nll


def negated(
    start: Mapping[str, Tensor], learned: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """start - scale * (learned - start): from 1 over 3, twice: 1 - 2 * 2 = -3."""
    return {name: start[name] - scale * (learned[name] - start[name]) for name in start}


class Negation(Direct):
    """How long and how fast the text is learned before the way back; `scale` times the strength."""

    name: ClassVar[str] = "negation"
    citation: ClassVar[str] = "Ilharco et al. 2023, arXiv 2212.04089"

    scale: float = Field(default=1.0, gt=0)
    epochs: int = Field(default=4, ge=1)
    batch_size: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, le=0.1)
    clip: float = Field(default=1.0, gt=0)

    def move(
        self,
        passes: Passes,
        forget: list[Item],
        retain: list[Item],
        seed: bytes,
        told: Callable[[int, int], None],
    ) -> Move:
        """Learn the texts to forget; retained text is not read."""
        weights = passes.weights
        start = weights.state()
        pairs = dict(zip(weights.names, weights.parameters(), strict=True))
        chosen = {n: p for n, p in pairs.items() if ".lora_A." not in n}
        optimizer = torch.optim.AdamW(
            chosen.values(), lr=self.learning_rate, weight_decay=0.0, foreach=True
        )
        size = self.batch_size
        total = self.epochs * -(-len(forget) // size)
        done = 0
        for epoch in range(self.epochs):
            order = list(range(len(forget)))
            random.Random(hashlib.sha256(b"negation%d" % epoch + seed).digest()).shuffle(order)
            for first in range(0, len(order), size):
                batch = [forget[i] for i in order[first : first + size]]
                loss = nll(passes.forward({"forget": batch})["forget"])
                for parameter in pairs.values():
                    parameter.grad = None
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(chosen.values(), self.clip)
                optimizer.step()
                done += 1
                told(done, total)
        learned = weights.state()
        weights.load(start)
        length = sum(float((learned[n] - start[n]).square().sum()) for n in start) ** 0.5
        return Move(
            lambda strength: negated(start, learned, self.scale * strength), {"length": length}
        )
