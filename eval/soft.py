"""Embedding-space attack (Schwinn et al. 2024): is a text one small push of the inputs away?

Guarantees: some continuous vectors, which no token needs to equal, are put before the first target
and moved to make the targets likely; the weights are not touched, and the same call gives the same
numbers. With `shown` below 1 the attacker knows the first part of the answer only, and the value is
the probability of the rest.

Enough vectors force any string out of any model. So a value says nothing alone: `controls`, strings
of the same kind that were never trained on, get the same budget, and `advantage` is the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import check_inputs, evaluating
from llm_unlearn.eval.summary import Estimate, bootstrap_statistic


@dataclass(frozen=True, slots=True)
class Attacked:
    """Geometric mean probability (texts,) of what is measured, before and after the attack."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def gain(self) -> NDArray[np.float64]:
        """Log of after over before: nats a token that the attack won, (texts,)."""
        gained: NDArray[np.float64] = np.log(self.after) - np.log(self.before)
        return gained


def embedding_attack(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    loss_mask: Sequence[Sequence[bool]],
    *,
    vectors: int = 4,
    steps: int = 20,
    rate: float = 0.1,
    shown: float = 1.0,
) -> Attacked:
    """Attack each text on its own, by signed gradient steps.

    v <- v - rate * rms * sign(dL/dv), with L the mean -ln p of the optimised targets and rms the
    root mean square of the embedding table. Table (1, 7), (5, 5): mean (3, 6), rms 5; at rate 0.1
    and a slope (2, -0.1) the first step goes to (2.5, 6.5).

    Args:
        vectors: how many are put before the first target; they start at the mean embedding.
        steps: gradient steps, each of `rate` times the root mean square of the embeddings.
        shown: share of the targets that the attacker knows and optimises. At 1 all are optimised
            and measured, as in the paper; below, ceil(shown * L) of L targets are optimised, at
            most L - 1 (3 of 5 at 0.5), and the others are measured.

    Raises:
        InputError: too few targets; a share outside (0, 1]; see `check_inputs`.
    """
    check_inputs(model, input_ids, loss_mask)
    if not 0 < shown <= 1 or vectors < 1 or steps < 1:
        raise InputError(
            f"{vectors} vectors, {steps} steps, a share of {shown} shown.",
            "Give at least one of each, and a share above 0, up to 1.",
        )
    table = model.get_input_embeddings()
    weight = table.weight.detach()
    size = float(weight.float().square().mean().sqrt()) * rate
    start = weight.float().mean(0).expand(vectors, -1)
    before, after = [], []
    with evaluating(model):
        for i, (ids, mask) in enumerate(zip(input_ids, loss_mask, strict=True)):
            targets = np.flatnonzero(np.asarray(mask, bool))
            if len(targets) < (1 if shown == 1 else 2):
                raise InputError(f"text {i} has too few targets.", "Give a longer answer.")
            whole = shown == 1
            known = (
                len(targets) if whole else min(len(targets) - 1, math.ceil(shown * len(targets)))
            )
            asked = slice(0 if whole else known, None)
            tokens = torch.tensor([list(ids)], device=weight.device)
            first = int(targets[0])
            soft = start.clone()
            with torch.no_grad():
                words = table(tokens)  # (1, T, d)
                plain = _log_p(model, words, tokens, targets, 0)
            before.append(float(plain[asked].mean().exp()))
            for _ in range(steps):
                soft.requires_grad_(True)
                with torch.enable_grad():
                    joined = _joined(words, soft, first)
                    loss = -_log_p(model, joined, tokens, targets[:known], vectors).mean()
                    [slope] = torch.autograd.grad(loss, [soft])
                soft = (soft - size * slope.sign()).detach()
            with torch.no_grad():
                found = _log_p(model, _joined(words, soft, first), tokens, targets, vectors)
            after.append(float(found[asked].mean().exp()))
    tiny = np.finfo(np.float64).tiny  # a probability that underflowed still has a logarithm
    return Attacked(np.maximum(before, tiny), np.maximum(after, tiny))


def advantage(texts: Attacked, controls: Attacked, *, seed: int = 0) -> Estimate:
    """Mean log-probability after the attack, texts less never-trained controls, in nats a token.

    With a bootstrap interval. Probabilities e^-1, e^-3 against e^-4, e^-4: -2 + 4 = 2. About 0: the
    attack forces, it does not recall. Texts may be easier than controls from the start: subtract
    the same of never-had.
    """
    return bootstrap_statistic(
        lambda a, b: float(a.mean() - b.mean()),
        [np.log(texts.after), np.log(controls.after)],
        seed=seed,
    )


def _joined(words: torch.Tensor, soft: torch.Tensor, first: int) -> torch.Tensor:
    made = soft.to(words.dtype)[None]
    return torch.cat([words[:, :first], made, words[:, first:]], 1)


def _log_p(
    model: Any, embedded: torch.Tensor, tokens: torch.Tensor, targets: NDArray[np.int64], more: int
) -> torch.Tensor:
    """Log-probability (targets,) with `more` vectors before the first target."""
    where = torch.from_numpy(targets + more - 1).to(embedded.device)
    logits = model(inputs_embeds=embedded, use_cache=False).logits[0, where].float()
    wanted = tokens[0, torch.from_numpy(targets).to(tokens.device)]
    return torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0]
