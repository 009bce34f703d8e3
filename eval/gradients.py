"""GradNorm membership: how hard a text still pulls at the weights.

Guarantees: one backward pass a text, in float32 sums; the model's gradients, their switches and its
mode are left as they were. It is not one of the shared-pass probes: it costs about three passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import check_inputs, evaluating


def gradient_scores(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    loss_mask: Sequence[Sequence[bool]],
) -> NDArray[np.float64]:
    """Minus the L2 norm of the gradient of a text's mean loss over all parameters, (texts,).

    Higher means member: a text that was fitted has a small gradient (Nasr et al. 2019; Wang et al.
    2024). Some implementations return the norm itself and so call members non-members. A gradient
    of 3 in one weight and 4 in another: -5.

    Raises:
        InputError: as `passes.score_tokens`; a text without targets, which has no gradient.
    """
    check_inputs(model, input_ids, loss_mask)
    bare = [i for i, mask in enumerate(loss_mask) if not any(mask)]
    if bare:
        raise InputError(f"text {bare[0]} has no targets.", "Set its loss mask for the answer.")
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    before = [(p.requires_grad, p.grad) for p in parameters]
    norms = []
    try:
        for p in parameters:
            p.requires_grad_(p.is_floating_point())
            p.grad = None
        with evaluating(model), torch.enable_grad():
            for ids, mask in zip(input_ids, loss_mask, strict=True):
                tokens = torch.tensor([list(ids)], device=device)
                labels = torch.tensor([list(mask)], device=device)[0, 1:]
                logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(
                    logits[labels].float(), tokens[0, 1:][labels]
                )
                model.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                total = sum(
                    float(p.grad.float().square().sum()) for p in parameters if p.grad is not None
                )
                norms.append(-(total**0.5))
    finally:
        for p, (switch, grad) in zip(parameters, before, strict=True):
            p.requires_grad_(switch)
            p.grad = grad
    return np.array(norms)
