"""From the answers of several shards to one: averages, merges, votes. Pure functions.

Guarantees: each is a function of its arguments alone, so an aggregate over serving adapters is
recomputed when one of them changes and never has anything subtracted from it. Ties go to the lower
shard number or label; what an empty ensemble gives is said at each function. SISA (Bourtoule et al.
2021, section IV-C) aggregates constituents by majority vote of labels and by averaging outputs.

It does not promise that a merge knows what its parts knew: adapters trained apart interfere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from llm_unlearn.errors import InputError

State = Mapping[str, Tensor]


def majority(labels: Sequence[int]) -> int | None:
    """The label most shards give; equal counts go to the lower label; None when there is no shard.

    >>> majority([2, 1, 2]), majority([3, 1, 1, 3]), majority([])
    (2, 1, None)
    """
    counts: dict[int, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return min(counts, key=lambda label: (-counts[label], label), default=None)


def average(values: Sequence[float]) -> float | None:
    """The mean of the shards' numbers, summed in their order; None when there is no shard.

    >>> average([1.0, 2.0, 6.0]), average([])
    (3.0, None)
    """
    return sum(values) / len(values) if values else None


def mean_probability(each: Tensor, weights: Tensor) -> Tensor:
    """The weighted arithmetic mean of distributions, as log-probabilities.

    Two shards with p = (1/2, 1/2) and (1/10, 9/10), equal weights: (3/10, 7/10).

    Args:
        each: (K, B, V) natural log-probabilities.
        weights: (K, B), at least 0, columns of sum 1.

    Returns:
        (B, V) log-probabilities.
    """
    return torch.logsumexp(each + weights.log()[..., None], dim=0)


def mean_log_probability(each: Tensor, weights: Tensor) -> Tensor:
    """The weighted geometric mean of distributions, normalised (a product of experts).

    Two shards with p = (1/2, 1/2) and (1/10, 9/10), equal weights: sqrt(1/20) = 0.2236 and
    sqrt(9/20) = 0.6708, divided by their sum: (1/4, 3/4).

    Shapes as in `mean_probability`.
    """
    weighted = torch.where(weights[..., None] > 0, each * weights[..., None], 0.0)
    return torch.log_softmax(weighted.sum(dim=0), dim=-1)


def merge(adapters: Sequence[State]) -> dict[str, Tensor]:
    """One adapter whose product is exactly the mean of the adapters' products B A.

    A is all A one below the other, B all B side by side, divided by their number, so that
    B A = (B1 A1 + ... + Bn An) / n: rank n r, no information lost, no product of A of one with
    B of another (which is what mixing A and B separately would give: peft's `linear`).

    Args:
        adapters: in the order of their shards, tensors by PEFT's names.

    Raises:
        InputError: no adapter given.
    """
    if not adapters:
        raise InputError("no adapter to merge.", "Use the base model alone.")
    merged = {}
    for name in adapters[0]:
        parts = [adapter[name] for adapter in adapters]
        if ".lora_A." in name:
            merged[name] = torch.cat(parts, dim=0)
        else:
            merged[name] = torch.cat(parts, dim=1) / len(adapters)
    return merged


def votes(near: Iterable[tuple[float, int]]) -> dict[int, float]:
    """Each shard's sum of cosines over the nearest documents, negative ones counted as 0.

    >>> votes([(0.5, 1), (0.25, 0), (0.25, 1), (-0.5, 2)])
    {1: 0.75, 0: 0.25, 2: 0.0}
    """
    found: dict[int, float] = {}
    for score, shard in near:
        found[shard] = found.get(shard, 0.0) + max(score, 0.0)
    return found


def winners(counted: Mapping[int, float], most: int) -> dict[int, float]:
    """The `most` shards with the largest votes and their shares; equal votes: the lower number.

    A shard without a vote is left out unless none has one, when the first gets it all. No votes
    counted: no winners.

    >>> winners({3: 1.0, 1: 1.0, 2: 2.0, 0: 0.0}, 2), winners({4: 0.0, 2: 0.0}, 2), winners({}, 2)
    ({2: 0.6666666666666666, 1: 0.3333333333333333}, {2: 1.0}, {})
    """
    best = sorted(counted, key=lambda shard: (-counted[shard], shard))[:most]
    some = [shard for shard in best if counted[shard] > 0]
    if not some:
        return dict.fromkeys(best[:1], 1.0)
    total = sum(counted[shard] for shard in some)
    return {shard: counted[shard] / total for shard in some}
