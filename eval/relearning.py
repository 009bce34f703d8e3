"""How fast does forgotten text come back when training goes on?

Guarantees: training is deterministic (given order, no dropout, AdamW without weight decay); the
model is put back, bit for bit, afterwards. A text that was really forgotten relearns no faster than
on a model that never had it, so run the same budget on that one; this probe gives the curve, not
the verdict. It trains all parameters that ask for gradients and holds one copy of them meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_unlearn.errors import InputError
from llm_unlearn.eval.passes import check_inputs, evaluating


@dataclass(frozen=True, slots=True)
class Point:
    """After `steps` training steps the probe gave `value`; `loss` is that of the last step."""

    steps: int
    loss: float
    value: float


def relearn(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    loss_mask: Sequence[Sequence[bool]],
    probe: Callable[[Any], float],
    *,
    steps: int = 20,
    every: int = 5,
    batch_size: int = 4,
    learning_rate: float = 1e-4,
) -> list[Point]:
    """Train for a few steps on the given texts, probing before and after each `every` steps.

    Args:
        model: a causal language model; of a PEFT model only the adapter trains.
        input_ids: token ids of the texts to train on: part of the forgotten set, or benign text.
        loss_mask: for each, the tokens to be learned.
        probe: what to measure, such as the verbatim probability of the rest of the forgotten set.
        steps: optimizer steps; texts are taken in the given order, over and over.
        every: steps between two probes.
        batch_size: texts a step, one after the other with summed gradients.
        learning_rate: of AdamW.

    Returns:
        The curve, starting with the untouched model (loss nan).

    Raises:
        InputError: no texts, nothing to train, less than one step between probes or text a step,
            or as `passes.score_tokens`.

    AdamW's first step is rate * g / (|g| + 1e-8): at 1e-4 every weight moves by 1e-4, whatever the
    size of its gradient g, so a few steps are a small push for any model.
    """
    if steps < 0 or every < 1 or batch_size < 1:
        raise InputError(
            f"{steps} steps, a probe every {every}, {batch_size} texts a step.",
            "Give 0 steps or more, and at least 1 of the others.",
        )
    check_inputs(model, input_ids, loss_mask)
    if not input_ids or not all(any(mask) for mask in loss_mask):
        raise InputError("a text has no tokens to learn, or there is none.", "Mask some in.")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("no parameter asks for gradients.", "Call requires_grad_ on some.")
    device = trained[0].device
    saved = [(p, p.detach().clone(), p.grad) for p in trained]
    curve = [Point(0, float("nan"), probe(model))]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    try:
        with evaluating(model):
            for step in range(1, steps + 1):
                optimizer.zero_grad()
                total = 0.0
                for k in range(batch_size):
                    i = ((step - 1) * batch_size + k) % len(input_ids)
                    tokens = torch.tensor([list(input_ids[i])], device=device)
                    wanted = torch.tensor(list(loss_mask[i])[1:], device=device)
                    with torch.enable_grad():
                        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
                        loss = torch.nn.functional.cross_entropy(
                            logits[wanted].float(), tokens[0, 1:][wanted]
                        )
                        torch.autograd.backward(loss / batch_size)
                    total += float(loss.detach()) / batch_size
                optimizer.step()
                if step % every == 0 or step == steps:
                    curve.append(Point(step, total, probe(model)))
    finally:
        with torch.no_grad():
            for parameter, value, grad in saved:
                parameter.copy_(value)
                parameter.grad = grad
    return curve
