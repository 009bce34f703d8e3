"""Log-probabilities of a prompt's own tokens, with the likeliest others: what `echo` tells.

Guarantees: a pass over the prompt alone, so no neighbour changes a bit. A prompt of more than `_BLOCK`
tokens is read in blocks over a cache of keys and values: no more than (_BLOCK, V) logits are held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache

from llm_unlearn.models.experts import Mixture, mixing
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.models.sampling import Drawn

_BLOCK: Final = 512
_ROWS: Final = 128


@torch.inference_mode()
def prompt_scores(
    host: AdapterHost, ids: Sequence[int], mixture: Mixture | None, top: int
) -> list[Drawn]:
    """Each token after the first, with its natural log-probability given those before it.

    Args:
        mixture: the adapters of this one prompt; None for the base model.
        top: how many of the likeliest tokens are told with each.
    """
    given = torch.tensor([list(ids)], device=host.base.device)
    if mixture is None:

        def plain(part: Tensor, attention: Tensor, cache: Any) -> Tensor:
            more: dict[str, Any] = {}
            if cache is not None:
                more = {"past_key_values": cache, "attention_mask": attention}
            logits: Tensor = host.base.model(
                input_ids=part, use_cache=cache is not None, **more
            ).logits
            return logits

        with host.using(None):
            return _blocks(host, given, plain, None, top)
    with mixing(host, mixture.stacked) as mixed:
        mixed.arrange(torch.from_numpy(mixture.slots))
        return _blocks(host, given, mixed.forward, mixture, top)


def _blocks(
    host: AdapterHost,
    given: Tensor,
    forward: Callable[[Tensor, Tensor, Any], Tensor],
    mixture: Mixture | None,
    top: int,
) -> list[Drawn]:
    """The scores of a prompt (1, T), block by block."""
    length = given.shape[1]
    cache = DynamicCache(config=host.base.model.config) if length > _BLOCK else None
    found: list[Drawn] = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        attention = torch.ones((1, end), dtype=torch.long, device=given.device)
        logits = forward(given[:, start:end], attention, cache)  # (K, n, V)
        for first in range(start, min(end, length - 1), _ROWS):
            last = min(first + _ROWS, end, length - 1)
            each = torch.log_softmax(logits[:, first - start : last - start].float(), -1)
            found += _told(each, given[0, first + 1 : last + 1], mixture, top)
    return found


def _told(each: Tensor, own: Tensor, mixture: Mixture | None, top: int) -> list[Drawn]:
    """Tokens (n,) with their log-probabilities in (K, n, V)."""
    row = each[0]
    if mixture is not None and len(each) > 1:
        weights = torch.from_numpy(mixture.weights).float().to(each.device)
        row = mixture.combine(each, weights.expand(len(each), each.shape[1]))
    logprobs = row.gather(1, own[:, None])[:, 0].tolist()
    values, tokens = row.topk(top) if top else (row[:, :0], row[:, :0].long())
    return [
        Drawn(token, logprob, tuple(zip(others, likely, strict=True)))
        for token, logprob, others, likely in zip(
            own.tolist(), logprobs, tokens.tolist(), values.tolist(), strict=True
        )
    ]
