"""What the layers know that the output does not say: logit lens, and linear probes of hidden states.

Guarantees: hidden states are read by hooks on the decoder layers and nothing is changed; a linear
probe is scored out of fold, whole groups of texts (a subject, a question) staying in one fold.

A linear probe learns: with many dimensions and few texts it can tell labels apart that the model
never stored. Its AUC counts beside that of never-had on the same texts, as everything here does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.eval.passes import check_inputs, evaluating
from llm_unlearn.models.layers import decoder

Array = NDArray[np.float64]


@contextmanager
def _watched(model: Any) -> Iterator[list[torch.Tensor]]:
    """The states after each decoder layer, of the pass made inside the block."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen: list[torch.Tensor] = []

    def keep(_layer: Any, _args: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layer.register_forward_hook(keep) for layer in decoder(inner).layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def final_norm(model: Any) -> torch.nn.Module:
    """The norm between the last layer and the output head.

    Raises:
        EnvironmentFailure: the architecture keeps it elsewhere.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        found = getattr(inner.base_model, name, None)
        if isinstance(found, torch.nn.Module):
            return found
    raise EnvironmentFailure(
        f"Cannot find the final norm of {type(inner).__name__}.", "Skip the logit lens."
    )


def logit_lens(
    model: Any, input_ids: Sequence[Sequence[int]], loss_mask: Sequence[Sequence[bool]]
) -> Array:
    """Probability of each text's targets read off after every layer, (texts, layers).

    nostalgebraist (2020); Patil et al. (2024) attack edited facts this way. The state after a layer
    goes through the model's own final norm and head; the value is the geometric mean over targets
    (1/2 and 1/8 after a layer: 1/4). The last column is the model's own verbatim probability. A text
    that the output hides and a middle layer still ranks high was covered up, not forgotten.

    Raises:
        InputError: as `passes.check_inputs`, a text without targets, or no texts.
        EnvironmentFailure: see `final_norm`.
    """
    _checked(model, input_ids, loss_mask)
    norm, head = final_norm(model), model.get_output_embeddings()
    rows = []
    with evaluating(model), torch.inference_mode():
        for tokens, targets, states in _each(model, input_ids, loss_mask):
            wanted = tokens[torch.from_numpy(targets)].to(states[0].device)[:, None]
            row = []
            for state in states:
                logits = head(norm(state[torch.from_numpy(targets - 1)]).contiguous()).float()
                logp = torch.log_softmax(logits, -1).gather(1, wanted)
                row.append(float(logp.mean().exp()))
            rows.append(row)
    return np.array(rows)


def mean_states(
    model: Any, input_ids: Sequence[Sequence[int]], loss_mask: Sequence[Sequence[bool]]
) -> NDArray[np.float32]:
    """Mean hidden state over a text's targets after every layer, float32 (texts, layers, width).

    States (1, 0) and (3, 4) of two targets: (2, 2).
    """
    _checked(model, input_ids, loss_mask)
    with evaluating(model), torch.inference_mode():
        return np.stack(
            [
                torch.stack([s[torch.from_numpy(targets)].float().mean(0) for s in states])
                .cpu()
                .numpy()
                for _, targets, states in _each(model, input_ids, loss_mask)
            ]
        )


def linear_probe(
    states: ArrayLike,
    labels: Sequence[bool],
    groups: Sequence[str],
    *,
    folds: int = 5,
    penalty: float = 1.0,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Ridge regression of the labels on hidden states, out of fold; higher means true.

    With c halfway between the two labels' mean states, a_i = x_i - c, y_i = 1 or -1 and weights w_i
    that let both labels count alike, b minimises sum_i w_i (y_i - a_i.b)^2 + r b.b, r = `penalty`
    times the mean of a_i.a_i; a text held out scores (x - c).b. Fitted on 3 (true) and 1 (not):
    c = 2, a = 1 and -1, r = 1, b = 2 / (2 + 1) = 2/3; a text at 5 scores 3 * 2/3 = 2.

    Args:
        states: (texts, width), such as one layer of `mean_states`.
        labels: what is to be told apart: right and changed answers, removed and other subjects.
        groups: texts of one group are held out together.
        penalty: of the squared weights, in units of the mean squared norm of the centred states.

    Returns:
        The scores of the texts whose label is true, and of the others, for `membership.attack`.

    Raises:
        InputError: lengths differ, one label only, or fewer groups than folds.
    """
    x, y = np.asarray(states, np.float64), np.asarray(labels, bool)
    names = sorted(set(groups))
    if x.ndim != 2 or len(x) != len(y) or len(y) != len(groups) or y.all() or not y.any():
        raise InputError(
            f"states {x.shape}, {len(y)} labels, {len(groups)} groups.",
            "Give one of each a text, and both labels.",
        )
    if len(names) < folds:
        raise InputError(f"{len(names)} groups for {folds} folds.", "Give fewer folds.")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    fold_of = {names[g]: place % folds for place, g in enumerate(order)}
    fold = np.array([fold_of[g] for g in groups])
    scores = np.empty(len(y))
    for k in range(folds):
        train, test = fold != k, fold == k
        # halfway between the labels, and no intercept: one that follows the shares of the training
        # folds would run against those of the fold held out, and score noise below chance
        known, target = x[train], np.where(y[train], 1.0, -1.0)
        if len(set(target.tolist())) < 2:
            raise InputError("a fold leaves one label only.", "Give fewer folds, or mixed groups.")
        centre = (known[target > 0].mean(0) + known[target < 0].mean(0)) / 2
        a, b = known - centre, x[test] - centre
        gram = a @ a.T
        # the dual form: texts are fewer than dimensions
        ridge = penalty * float(np.trace(gram)) / len(a) + 1e-12
        weight = np.where(target > 0, 1 / (target > 0).mean(), 1 / (target < 0).mean()) / 2
        dual = np.linalg.solve(gram + ridge * np.diag(1 / weight), target)
        scores[test] = b @ (a.T @ dual)
    return scores[y], scores[~y]


def _checked(
    model: Any, input_ids: Sequence[Sequence[int]], loss_mask: Sequence[Sequence[bool]]
) -> None:
    check_inputs(model, input_ids, loss_mask)
    if not input_ids:
        raise InputError("no texts.", "Give at least one.")


def _each(
    model: Any, input_ids: Sequence[Sequence[int]], loss_mask: Sequence[Sequence[bool]]
) -> Iterator[tuple[torch.Tensor, NDArray[np.int64], list[torch.Tensor]]]:
    """Token ids (T,), target positions, and the states (T, width) after each layer, text by text."""
    device = next(model.parameters()).device
    for i, (ids, mask) in enumerate(zip(input_ids, loss_mask, strict=True)):
        targets = np.flatnonzero(np.asarray(mask, bool)).astype(np.int64)
        if not len(targets):
            raise InputError(f"text {i} has no targets.", "Set its loss mask for the answer.")
        tokens = torch.tensor(list(ids))
        with _watched(model) as seen:
            model(input_ids=tokens[None].to(device), use_cache=False)
        yield tokens, targets, [s[0] for s in seen]
