"""The arithmetic that forgetting losses share, over one row a predicted token.

Guarantees: every row is a token that carries loss, so no mean runs over a prompt or over padding, no
label stands for "none", and the last label counts like the others. What belongs to which sequence
is said by `rows`, never by an id that happens to pad.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax


@dataclass(frozen=True)
class Reference:
    """What the weights said before forgetting began, for the same tokens.

    `logps` (N,), `logits` (N, V) or None when no method asked, `hidden` (N, H) likewise.
    """

    logps: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Predicted:
    """The predicted tokens of some sequences.

    `logits` (N, V) float32 or None in a pass that stops at a layer, `hidden` (N, H) at that layer,
    `targets` (N,) token ids, `rows` (N,) the sequence of each token, counted from 0.
    """

    targets: Tensor
    rows: Tensor
    sequences: int
    logits: Tensor | None = None
    hidden: Tensor | None = None
    reference: Reference = Reference()

    @property
    def logps(self) -> Tensor:
        """Log-probability (N,) of each token."""
        return token_logps(given(self.logits), self.targets)


def given(tensor: Tensor | None) -> Tensor:
    """A tensor that the method declared it needs."""
    if tensor is None:
        raise AssertionError("the method uses what it did not ask for")
    return tensor


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log p(target) (N,) from logits (N, V)."""
    return -cross_entropy(logits, targets, reduction="none")


def sequence_sums(values: Tensor, rows: Tensor, sequences: int) -> Tensor:
    """Sum of token values (N,) within each sequence (B,).

    >>> sequence_sums(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist()
    [3.0, 5.0]
    """
    return values.new_zeros(sequences).index_add(0, rows, values)


def sequence_means(values: Tensor, rows: Tensor, sequences: int) -> Tensor:
    """Mean of token values (N,) within each sequence (B,); every sequence has a token.

    >>> sequence_means(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist()
    [1.5, 5.0]
    """
    return sequence_sums(values, rows, sequences) / torch.bincount(rows, minlength=sequences)


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || current) (N,) between the softmaxes of two logits (N, V)."""
    before, now = log_softmax(reference, -1), log_softmax(logits, -1)
    return (before.exp() * (before - now)).sum(-1)


def nll(predicted: Predicted) -> Tensor:
    """Mean negative log-likelihood over the predicted tokens."""
    return -predicted.logps.mean()
