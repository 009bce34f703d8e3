"""Influence functions: one Newton step that removes texts from an optimum (Koh and Liang 2017,
arXiv 1703.04730; Guo et al. 2020, arXiv 1911.03030).

At the optimum of sum_all loss_i + damping/2 |theta|^2 the gradient of what stays is minus that of what
goes, so one Newton step for what stays is theta + H^-1 sum_forget grad loss_i. H is the generalised
Gauss-Newton matrix of what stays plus damping, positive by construction; products with it come from
two backward passes and the softmax's own curvature, p u - p (p.u), without forming it, and the system is
solved by conjugate gradients.

Guarantees: products exact up to the rounding of the run's dtype (in bfloat16 they are symmetric only that
far, too); a residual that is reported, as conjugate gradients keep track of it and not by a look back at
the system (above 1 the step solves nothing yet: more iterations do); a damping that is stated relative to
the mean of the diagonal (by Hutchinson's estimate from seeded signs) and reported absolutely. Where the
model is convex and trained to its optimum, what is left is second order in the share removed. A deep
model is neither: then this is an approximation, whose fit only probes can tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_unlearn.errors import InputError
from llm_unlearn.forget.method import Direct, Move
from llm_unlearn.forget.passes import Item, Passes
from llm_unlearn.forget.tensors import given

Vector = list[Tensor]
_BATCH = 8


def gauss_newton(
    batches: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor], vector: Vector
) -> Vector:
    """Sum over batches of J^T (diag p - p p^T) J v, for cross-entropy summed over tokens.

    Args:
        batches: each gives logits (N, V) as a function of the parameters, differentiable twice.
    """
    total = [torch.zeros_like(p) for p in parameters]
    for batch in batches:
        logits = batch()
        probe = torch.zeros_like(logits, requires_grad=True)
        backward = torch.autograd.grad(
            logits, parameters, probe, create_graph=True, allow_unused=True
        )
        used = [(g, v) for g, v in zip(backward, vector, strict=True) if g is not None]
        # J^T u is linear in u: its derivative in the direction v is J v
        forward = torch.autograd.grad(
            [g for g, _ in used], probe, [v for _, v in used], retain_graph=True
        )[0]
        p = logits.detach().softmax(-1)
        curved = p * forward
        curved = curved - p * curved.sum(-1, keepdim=True)
        found = torch.autograd.grad(logits, parameters, curved, allow_unused=True)
        for into, part in zip(total, found, strict=True):
            if part is not None:
                into += part
    return total


def solve(
    product: Callable[[Vector], Vector],
    right: Vector,
    iterations: int,
    tolerance: float,
    told: Callable[[int], None] | None = None,
) -> tuple[Vector, float, int]:
    """Conjugate gradients from 0: the solution, its relative residual, and how many products it took."""
    x = [torch.zeros_like(r) for r in right]
    residual = [r.clone() for r in right]
    direction = [r.clone() for r in right]
    size = _dot(residual, residual)
    goal = tolerance**2 * size
    done = 0
    while done < iterations and size > goal:
        image = product(direction)
        step = size / _dot(direction, image)
        x = [a + step * d for a, d in zip(x, direction, strict=True)]
        residual = [r - step * i for r, i in zip(residual, image, strict=True)]
        following = _dot(residual, residual)
        direction = [r + following / size * d for r, d in zip(residual, direction, strict=True)]
        size = following
        done += 1
        if told is not None:
            told(done)
    start = _dot(right, right)
    return x, (size / start) ** 0.5 if start else 0.0, done


def mean_diagonal(
    product: Callable[[Vector], Vector], like: Sequence[Tensor], probes: int, seed: bytes
) -> float:
    """Trace over size, by Hutchinson's estimate with random signs."""
    number = int.from_bytes(hashlib.sha256(b"hutchinson" + seed).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    size = sum(t.numel() for t in like)
    total = 0.0
    for _ in range(probes):
        signs = [(torch.randint(0, 2, t.shape, generator=generator) * 2 - 1).to(t) for t in like]
        total += _dot(signs, product(signs))
    return total / probes / size


class Influence(Direct):
    """Damping and how exactly the system is solved."""

    name: ClassVar[str] = "influence"
    citation: ClassVar[str] = (
        "Koh and Liang 2017, arXiv 1703.04730; Guo et al. 2020, arXiv 1911.03030"
    )

    damping: float = Field(
        default=0.1, gt=0, description="In units of the curvature's mean diagonal."
    )
    iterations: int = Field(default=8, ge=1)
    tolerance: float = Field(default=1e-3, gt=0, lt=1)
    probes: int = Field(default=1, ge=1)
    sample: int = Field(
        default=32, ge=1, description="Retained texts that the curvature is taken from, scaled up."
    )

    def move(
        self,
        passes: Passes,
        forget: list[Item],
        retain: list[Item],
        seed: bytes,
        told: Callable[[int, int], None],
    ) -> Move:
        """The whole step; the strength scales it."""
        if not retain:
            raise InputError(
                "Influence needs the curvature of retained text.", "Give --retain documents."
            )
        weights = passes.weights
        parameters = weights.parameters()
        order = sorted(
            range(len(retain)), key=lambda i: hashlib.sha256(seed + i.to_bytes(4, "big")).digest()
        )
        chosen = [retain[i] for i in sorted(order[: self.sample])]
        scale = len(retain) / len(chosen)
        total = self.iterations + self.probes
        batches = [_logits(passes, chosen[i : i + _BATCH]) for i in range(0, len(chosen), _BATCH)]

        def curvature(vector: Vector) -> Vector:
            return [scale * part for part in gauss_newton(batches, parameters, vector)]

        with passes.plain(), _twice_differentiable():
            right = [torch.zeros_like(p) for p in parameters]
            for i in range(0, len(forget), _BATCH):
                out = passes.forward({"x": forget[i : i + _BATCH]})["x"]
                found = torch.autograd.grad(-out.logps.sum(), parameters, allow_unused=True)
                for into, part in zip(right, found, strict=True):
                    if part is not None:
                        into += part
            mean = mean_diagonal(curvature, parameters, self.probes, seed)
            damping = self.damping * max(mean, torch.finfo(torch.float32).tiny)
            step, residual, done = solve(
                lambda v: [c + damping * d for c, d in zip(curvature(v), v, strict=True)],
                right,
                self.iterations,
                self.tolerance,
                lambda n: told(n + self.probes, total),
            )
        start = weights.state()
        moved = {n: s.detach().cpu() for n, s in zip(weights.names, step, strict=True)}
        report = {
            "damping": damping,
            "mean diagonal": mean,
            "residual": residual,
            "products": float(done + self.probes),
            "length": _dot(step, step) ** 0.5,
            "curvature texts": float(len(chosen)),
        }
        return Move(lambda strength: {n: start[n] + strength * moved[n] for n in start}, report)


def _logits(passes: Passes, items: list[Item]) -> Callable[[], Tensor]:
    return lambda: given(passes.forward({"x": items})["x"].logits)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Fused attention has no second derivative; the plain one has."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
