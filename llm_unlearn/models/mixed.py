"""Continuations and scores of several adapters together, from one forward pass for all (`experts`).

Guarantees: greedy decoding only, the lower id where two tokens are equally likely; what an answer or a
score is does not depend, but for float noise, on the texts beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from llm_unlearn.errors import InputError
from llm_unlearn.models.experts import Combine, Mixed, Stack, mixing
from llm_unlearn.models.lora import AdapterHost

_ROWS = 64  # rows of one batch: bounds memory, and wider ones are no faster on a CPU
_LOGITS = 1 << 27  # most float32 logits held at once while scoring


@torch.inference_mode()
def generate_mixed(
    host: AdapterHost,
    stacked: Stack,
    prompts: Sequence[Sequence[int]],
    slots: NDArray[np.int64],
    weights: NDArray[np.float64],
    combine: Combine,
    *,
    max_new_tokens: int = 64,
    rows: int = _ROWS,
) -> list[list[int]]:
    """Greedy continuations of each prompt by several adapters together, token by token.

    Args:
        slots: (K, prompts), positions in the stack.
        weights: (K, prompts), at least 0, columns of sum 1; with 0 an adapter has no say.
        combine: how K next-token distributions become one; not called when K is 1.
        rows: most rows (prompts times K) of a batch.

    Returns:
        New token ids without the stop token, one list a prompt.

    Raises:
        InputError: a prompt is longer than the model can read.
    """
    _check_length(host, prompts, max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = max(1, rows // max(1, len(slots)))
    with mixing(host, stacked) as mixed:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            _decode(
                host,
                mixed,
                [prompts[i] for i in chosen],
                torch.from_numpy(slots[:, chosen]),
                torch.from_numpy(weights[:, chosen]).float(),
                combine,
                max_new_tokens,
                [answers[i] for i in chosen],
            )
    return answers


def _decode(
    host: AdapterHost,
    mixed: Mixed,
    prompts: Sequence[Sequence[int]],
    slots: Tensor,
    weights: Tensor,
    combine: Combine,
    most: int,
    answers: list[list[int]],
) -> None:
    """Fill `answers`; prompts that have stopped leave the batch when they are half of it."""
    device, stops = host.base.device, set(host.base.stop_ids)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), host.base.tokenizer.pad_token_id, dtype=torch.long)
    attention = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        attention[row, width - len(prompt) :] = 1
    ids, attention, weights = ids.to(device), attention.to(device), weights.to(device)
    cache = DynamicCache(config=host.base.model.config)
    mixed.arrange(slots)
    places = list(range(len(prompts)))  # which answer a prompt of the batch belongs to
    running = [True] * len(prompts)
    for _ in range(most):
        logits = mixed.forward(ids, attention, cache, keep=1)[:, -1]  # (K B, V)
        following = _next(logits, weights, combine)
        for row, token in enumerate(following.tolist()):
            if running[row] and token not in stops:
                answers[places[row]].append(token)
            else:
                running[row] = False
        if not any(running):
            return
        ids = following[:, None]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
        if 2 * sum(running) <= len(running):
            kept = torch.tensor([row for row, on in enumerate(running) if on])
            _shrink(cache, kept.to(device), len(running), mixed.copies)
            ids, attention = ids[kept.to(device)], attention[kept.to(device)]
            slots, weights = slots[:, kept], weights[:, kept.to(device)]
            places = [places[row] for row in kept.tolist()]
            running = [True] * len(places)
            mixed.arrange(slots)


def _next(logits: Tensor, weights: Tensor, combine: Combine) -> Tensor:
    """The likeliest token (B,) of the combined distribution; ties go to the lower id."""
    copies, prompts = weights.shape
    if copies == 1:
        return logits.argmax(-1)
    each = torch.log_softmax(logits.float(), -1).view(copies, prompts, -1)
    return combine(each, weights).argmax(-1)


def _shrink(cache: Any, kept: Tensor, prompts: int, copies: int) -> None:
    """Keep some prompts' rows in every layer: B of them below the adapted layers, K B above."""
    wide = (kept + prompts * torch.arange(copies, device=kept.device)[:, None]).reshape(-1)
    for layer in cache.layers:
        index = kept if len(layer.keys) == prompts else wide
        layer.keys, layer.values = layer.keys[index], layer.values[index]


@torch.inference_mode()
def score_mixed(
    host: AdapterHost,
    stacked: Stack,
    texts: Sequence[tuple[Sequence[int], Sequence[bool]]],
    slots: NDArray[np.int64],
    weights: NDArray[np.float64],
    combines: Sequence[Combine],
    *,
    rows: int = _ROWS,
) -> list[list[NDArray[np.float64]]]:
    """Log-probabilities of each text's masked tokens under the combined next-token distributions.

    Args:
        texts: token ids and which of them are targets (never the first).
        combines: several ways to combine share one forward pass.

    Returns:
        For each of `combines` and each text, (targets,) natural logarithms.
    """
    _check_length(host, [ids for ids, _ in texts], 0)
    found: list[list[NDArray[np.float64]]] = [[np.empty(0)] * len(texts) for _ in combines]
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i][0]), i))
    vocabulary = int(host.base.model.get_output_embeddings().weight.shape[0])
    copies = max(1, len(slots))
    longest = max((len(ids) for ids, _ in texts), default=1)
    size = max(1, min(rows, _LOGITS // (vocabulary * longest)) // copies)
    device = host.base.device
    with mixing(host, stacked) as mixed:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            width = max(len(texts[i][0]) for i in chosen)
            ids = torch.zeros((len(chosen), width), dtype=torch.long)
            attention = torch.zeros((len(chosen), width), dtype=torch.long)
            for row, i in enumerate(chosen):
                ids[row, : len(texts[i][0])] = torch.tensor(list(texts[i][0]))
                attention[row, : len(texts[i][0])] = 1
            targets = [np.flatnonzero(np.asarray(texts[i][1], dtype=bool)) for i in chosen]
            wanted = np.unique(np.concatenate(targets) - 1)
            mixed.arrange(torch.from_numpy(slots[:, chosen]))
            logits = mixed.forward(
                ids.to(device), attention.to(device), keep=torch.from_numpy(wanted).to(device)
            ).view(copies, len(chosen), len(wanted), -1)
            share = torch.from_numpy(weights[:, chosen]).float().to(device)
            for row, i in enumerate(chosen):
                where = torch.from_numpy(np.searchsorted(wanted, targets[row] - 1))
                each = torch.log_softmax(logits[:, row, where].float(), -1)  # (K, targets, V)
                own = ids[row, torch.from_numpy(targets[row])].to(device)[:, None]
                spread = share[:, row, None].expand(copies, len(own))
                for number, combine in enumerate(combines):
                    mixture = each[0] if copies == 1 else combine(each, spread)
                    found[number][i] = mixture.gather(1, own)[:, 0].double().cpu().numpy()
            del logits
    return found


def _check_length(host: AdapterHost, prompts: Sequence[Sequence[int]], new: int) -> None:
    longest = max((len(prompt) for prompt in prompts), default=0)
    most = getattr(host.base.model.config, "max_position_embeddings", None)
    if most is not None and longest + new > most:
        raise InputError(
            f"The prompt has {longest} tokens; with {new} for the answer that is more "
            f"than the {most} that {host.base.reference} can read.",
            "Ask a shorter question, or retrieve fewer passages.",
        )
