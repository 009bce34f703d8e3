"""Log-probabilities of a prompt's own tokens, with the likeliest others: what `echo` tells.

Guarantees: one pass over the prompt alone, so no neighbour changes a bit. (T, V) logits are held at
once in the model's own precision; their logarithms in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llm_unlearn.models.experts import Mixture, mixing
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.models.sampling import Drawn

_ROWS = 128


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
        with host.using(None):
            logits = host.base.model(input_ids=given, use_cache=False).logits
    else:
        with mixing(host, mixture.stacked) as mixed:
            mixed.arrange(torch.from_numpy(mixture.slots))
            logits = mixed.forward(given, torch.ones_like(given))
    found = []
    for start in range(0, len(ids) - 1, _ROWS):
        end = min(start + _ROWS, len(ids) - 1)
        each = torch.log_softmax(logits[:, start:end].float(), -1)  # (K, n, V)
        if mixture is not None and len(each) > 1:
            weights = torch.from_numpy(mixture.weights).float().to(each.device)
            row = mixture.combine(each, weights.expand(len(each), end - start))
        else:
            row = each[0]
        own = given[0, start + 1 : end + 1, None]
        logprobs = row.gather(1, own)[:, 0].tolist()
        values, tokens = row.topk(top) if top else (row[:, :0], row[:, :0].long())
        for place, logprob in enumerate(logprobs):
            others = zip(tokens[place].tolist(), values[place].tolist(), strict=True)
            found.append(Drawn(int(own[place]), logprob, tuple(others)))
    return found
