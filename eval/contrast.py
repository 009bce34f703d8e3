"""Two checkpoints compared: what a deletion took away tells what it was about (Wu et al. 2025).

Guarantees: decoding is steered by the difference between the model before a deletion and the one
after it; it works against exact deletion as well, since a difference that is exactly the text's
influence is what it reads. It takes both models, or their logits: whoever has only what is left
after the takedown cannot run it.

Not reproduced are the paper's tables: its models, prompts and thresholds differ from ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import check_inputs, evaluating

Side = Callable[[], AbstractContextManager[Any]]
"""Puts one of the two models in place and yields it; both may share weights (adapters on one base)."""


def guided(before: Tensor, after: Tensor, weight: float, least: float) -> Tensor:
    """Guided log-probabilities from two log-probabilities (..., vocabulary), unnormalised.

    log p = log p_after + weight * (log p_before - log p_after) over the tokens with
    p_before >= least * max p_before, and -inf elsewhere: the filter keeps what the earlier model
    finds plausible, so that the difference does not raise noise (Wu et al. 2025, section 4).
    weight 0: the model after; 1: the one before; above: past it, away from what stayed.

    p_before 0.6, 0.4 and p_after 0.8, 0.2 with weight 2: 0.36/0.8 = 0.45 and 0.16/0.2 = 0.8; the
    second token wins, which neither model prefers. With least 0.7 only the first is kept.
    """
    kept = before >= before.amax(-1, keepdim=True) + np.log(least)
    return torch.where(kept, after + weight * (before - after), torch.full_like(after, -torch.inf))


def guided_hits(
    before: Side,
    after: Side,
    input_ids: Sequence[Sequence[int]],
    loss_mask: Sequence[Sequence[bool]],
    *,
    weight: float = 2.0,
    least: float = 1e-3,
) -> list[NDArray[np.bool_]]:
    """For each text, whether guided greedy decoding guesses each target, teacher-forced.

    Two passes a text. A run of hits at the end is what guided decoding gives back from the true
    tokens before it; its share is extraction strength under guidance (see `tail_share`).

    Raises:
        InputError: a least share outside (0, 1], a negative weight; as `passes.check_inputs`.
    """
    _checked(weight, least)
    found = []
    for ids, mask in zip(input_ids, loss_mask, strict=True):
        targets = np.flatnonzero(np.asarray(mask, bool))
        sides = []
        for side in (before, after):
            with side() as model, evaluating(model), torch.inference_mode():
                check_inputs(model, [ids], [mask])
                tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
                logits = model(input_ids=tokens, use_cache=False).logits
                where = torch.from_numpy(targets - 1).to(logits.device)
                sides.append(torch.log_softmax(logits[0, where].float(), -1))
        guess = guided(sides[0], sides[1], weight, least).argmax(-1).cpu().numpy()
        found.append(guess == np.asarray(ids)[targets])
    return found


def tail_share(hits: NDArray[np.bool_]) -> float:
    """Share of the answer in the run of hits that it ends with. 1, 0, 1, 1: 2/4; 1, 1, 0: 0."""
    if not len(hits):
        raise InputError("a text has no targets.", "Set its loss mask for the answer.")
    misses = np.flatnonzero(~hits)
    return 1.0 if not len(misses) else (len(hits) - 1 - int(misses[-1])) / len(hits)


def guided_generate(
    before: Side,
    after: Side,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 48,
    weight: float = 2.0,
    least: float = 1e-3,
    stops: Sequence[int] = (),
) -> list[list[int]]:
    """Greedy continuations by guided decoding, each model with its own key-value cache.

    Raises:
        InputError: an empty prompt, a least share outside (0, 1], or a negative weight.
    """
    _checked(weight, least)
    if any(not p for p in prompts):
        raise InputError("a prompt is empty.", "Give at least a start token.")
    if not prompts:
        return []
    width = max(len(p) for p in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    caches: list[Any] = [None, None]
    answers: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    step = ids
    for _ in range(max_new_tokens):
        sides = []
        for i, side in enumerate((before, after)):
            with side() as model, evaluating(model), torch.inference_mode():
                device = next(model.parameters()).device
                where = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
                out = model(
                    input_ids=step.to(device),
                    attention_mask=mask.to(device),
                    position_ids=where.to(device),
                    past_key_values=caches[i],
                    use_cache=True,
                )
                caches[i] = out.past_key_values
                sides.append(torch.log_softmax(out.logits[:, -1].float(), -1).cpu())
        chosen = guided(sides[0], sides[1], weight, least).argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            if going[row] and token in stops:
                going[row] = False
            if going[row]:
                answers[row].append(token)
        if not any(going):
            break
        step = chosen[:, None]
        mask = torch.cat([mask, torch.ones((len(prompts), 1), dtype=torch.long)], 1)
    return answers


def _checked(weight: float, least: float) -> None:
    if weight < 0 or not 0 < least <= 1:
        raise InputError(
            f"weight {weight}, least {least}.", "Give a weight of 0 or more, a share in (0, 1]."
        )
