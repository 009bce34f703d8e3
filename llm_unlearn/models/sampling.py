"""Choosing the next token of one row: greedy or drawn, and around tokens that may not come.

Guarantees: at temperature 0, or one below `COLDEST`, the likeliest token, ties to the lower id; otherwise
draws that depend on the logits and the seed alone, whatever other rows do; a token that `allowed` refuses
is never chosen.
Two runs repeat as far as their logits do: the composition of a batch can change last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Allowed = Callable[[int], bool]
COLDEST: Final = 1e-4
"""Logits divided by less can leave float32; so cold, the likeliest token has all the probability."""


@dataclass(frozen=True)
class Drawn:
    """A token, its natural log-probability before temperature, and the likeliest others with theirs."""

    token: int
    logprob: float = math.nan
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The draws of one row.

    Args:
        temperature: logits are divided by it; greedy below `COLDEST`.
        top_p: draw from the fewest tokens whose probabilities sum to this (Holtzman et al. 2020,
            arXiv 1904.09751).
        seed: of this row's draws; None for another one each time.
        logprobs: how many of the likeliest tokens are told with each; None tells no log-probability.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        logprobs: int | None = None,
    ) -> None:
        self.temperature = temperature if temperature >= COLDEST else 0.0
        self.top_p = top_p
        self.logprobs = logprobs
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed % (1 << 63))

    @property
    def plain(self) -> bool:
        """Whether the argmax is all that is asked for."""
        return self.temperature == 0 and self.logprobs is None

    def draw(self, logits: Tensor, allowed: Allowed | None = None, end: int = 0) -> Drawn:
        """The next token from logits (V,).

        Args:
            end: what is chosen when nothing else may be.
        """
        logits = logits.float()
        left = logits.clone()
        token = self._one(left)
        while allowed is not None and not allowed(token):
            left[token] = -math.inf
            if not torch.isfinite(left).any():
                token = end
                break
            token = self._one(left)
        if self.logprobs is None:
            return Drawn(token)
        each = torch.log_softmax(logits, -1)
        values, ids = each.topk(self.logprobs) if self.logprobs else (each[:0], each[:0].long())
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Drawn(token, float(each[token]), top)

    def _one(self, logits: Tensor) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        weights = torch.softmax(logits / self.temperature, -1)
        if self.top_p < 1:
            ordered, order = weights.sort(descending=True, stable=True)
            beyond = ordered.cumsum(0) - ordered >= self.top_p  # the first token always stays
            weights[order[beyond]] = 0
        return int(torch.multinomial(weights, 1, generator=self._generator))
