"""Which adapters answer a question, and with what share.

Guarantees: a pure function of the question, the caller's groups, the settings and the live documents
that serving adapters were trained on; no record of the past enters. A shard is only ever chosen for a
caller in the group that it answers. Equal votes go to the lower shard number. With nobody to answer,
or no document near enough, nobody is chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llm_unlearn.config import AnsweringConfig
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.retrieval.store import Store
from llm_unlearn.sisa.aggregate import votes, winners
from llm_unlearn.sisa.build import ShardState


@dataclass(frozen=True)
class Standing:
    """The shards as they serve: each covered document's shard, each serving adapter's inputs."""

    covered: Mapping[bytes, int]
    serving: Mapping[int, bytes]


def standing(states: Sequence[ShardState]) -> Standing:
    """What serves now: of a shard that was rolled back, only the documents still covered."""
    covered: dict[bytes, int] = {}
    serving: dict[int, bytes] = {}
    for state in states:
        if state.serving is None:
            continue
        serving[state.shard] = state.serving.inputs
        for part in state.wanted[: state.clean]:
            for record in part.records:
                covered[record.handle] = state.shard
    return Standing(covered, serving)


def permitted(
    now: Standing, required: Mapping[int, str], groups: Collection[str], default: str
) -> frozenset[int]:
    """The serving shards that may answer this caller.

    Args:
        required: shards that belong to an access group; every other answers the default group.
    """
    return frozenset(s for s in now.serving if required.get(s, default) in groups)


def nearest(
    router: Store, vector: Floats, now: Standing, shards: Collection[int], most: int
) -> list[tuple[float, int]]:
    """The nearest `most` chunks that these shards' adapters were trained on, as (cosine, shard).

    Looks further while the nearest ones are of others, as after a rollback.
    """
    k = most
    while shards:
        near = router.nearest(vector, k)
        found = [
            (score, now.covered[record.handle])
            for score, record, _ in near
            if now.covered.get(record.handle) in shards
        ]
        if len(found) >= most or len(near) < k:
            return found[:most]
        k *= 2
    return []


def shares(
    near: Sequence[tuple[float, int]], shards: Collection[int], config: AnsweringConfig
) -> dict[int, float]:
    """Each answering shard's share, by `config.aggregation`; empty below the threshold.

    A question that no training document is near to reaches no adapter, however many would answer:
    `route` gives it to the shard with the most votes, `route-k` to the best few, the others to all.
    """
    if not near or near[0][0] < config.route_threshold:
        return {}
    if config.aggregation in ("route", "route-k"):
        most = 1 if config.aggregation == "route" else config.route_shards
        return winners(votes(near), most)
    return dict.fromkeys(sorted(shards), 1 / len(shards))
