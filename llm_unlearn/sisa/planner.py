"""What deletions will cost, before a corpus is divided: tokens, time, storage, by SISA's arithmetic.

After Bourtoule et al. 2021 (SISA, arXiv 1912.03817), sections IV and V. S shards, R slices, K demands.

One demand. A uniformly chosen subject lies in one shard (1/S of the corpus) and in slice r with
probability 1/R. Stages r to R are trained again, stage i passing over slices 1 to i (`cumulative`), so
the share of a whole training of that shard is the mean over r of sum_{i=r..R} i / sum_{i=1..R} i

    = (1/R) sum_i i^2 / (R (R+1)/2) = (2R + 1) / (3R)

R = 1: 1; R = 2: (3 + 2)/2 / 3 = 5/6; R = 4: 30/40 = 3/4; R to infinity: 2/3, which is the paper's bound of
1.5 on the gain by slicing. With `sequential` training (stage i passes over slice i only; its replay is left
out here) it is (R + 1) / (2R): R = 2: (2 + 1)/2 / 2 = 3/4; R = 4: 5/8. Of the corpus, a demand costs 1/S
of that.

K demands at once. A stage i of a shard is trained again if any of them falls into the slices up to i,
which one does with probability i / (R S), so the expected cost in whole trainings is

    sum over shards and stages of cost(stage) (1 - (1 - i / (R S))^K)

R = 1: S (1/S) (1 - (1 - 1/S)^K) = 1 - (1 - 1/S)^K, the paper's formula for a batch. S = 2, R = 2, K = 2,
with stages of 1/3 and 2/3 of a shard: 2 (1/2) (1/3 (1 - (3/4)^2) + 2/3 (1 - (1/2)^2)) = 7/48 + 1/2 = 31/48.

With risk. Where a share of the subjects draws most of the demands, slices differ in size and in the
chance of a demand; the same sum is taken over a table of both (`Table`), so that placing by risk is
compared with placing by hash in one formula.

With several orders of slices (`orders.py`) each order is trained, and retrained, on its own: everything
but the storage of blocks is multiplied. An order of blocks needs the room of one adapter without
moments, where plain slices need three times an adapter for each. What is gained is in `survived`.

Guarantees: exact expectations for demands that fall independently on documents of equal size.

Not guaranteed: that documents are equal, that a removed document makes the next retraining cheaper
(left out: the estimate is a little high), or any number of utility: SISA gives no formula for what an
adapter loses by knowing less. What it sees is given (`documents_per_adapter`); what that costs on real text
is in docs/sharding.md and docs/LOG.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_unlearn.sisa.orders import deletions_survived

Mode = Literal["cumulative", "sequential"]
PlaceBy = Literal["hash", "risk-slices", "risk-shards"]
BYTES = 4  # float32; a plain checkpoint holds the adapter and AdamW's two moments


@dataclass(frozen=True)
class Risk:
    """A share of the subjects that draws a share of the demands, such as 0.1 and 0.8."""

    subjects: float
    demands: float


@dataclass(frozen=True)
class Table:
    """Shares of documents and of demands for each shard and slice; each table sums to 1."""

    documents: tuple[tuple[float, ...], ...]
    demands: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Cost:
    """What retraining costs, in expectation.

    Attributes:
        share: of one whole training of everything (naive retraining is 1).
        tokens: real tokens passed over.
        seconds: at the given pace; None without one.
    """

    share: float
    tokens: float
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """One way to divide a corpus and what follows from it.

    Attributes:
        passes: how often a stage passes over its slices.
        training: the first training of everything.
        deletion: one demand.
        one_by_one: the demands of a month, each retrained by itself.
        batched: the demands of a month, retrained together once.
        checkpoints: how many there are, and `storage` their bytes.
        survived: demands on a shard until none of its orders serves, if none is retrained meanwhile.
        documents_per_adapter: what one adapter learns from, on average.
    """

    shards: int
    slices: int
    mode: Mode
    place_by: PlaceBy
    passes: int
    training: Cost
    deletion: Cost
    one_by_one: Cost
    batched: Cost
    checkpoints: int
    storage: int
    survived: float
    documents_per_adapter: float


def passes_per_stage(epochs: int, slices: int, mode: Mode) -> int:
    """Passes of one stage, so that a whole training costs `epochs` passes over the shard.

    Cumulative, SISA's correction (section V-B): e (R + 1) / 2 = epochs, so e = 2 epochs / (R + 1), rounded.

    >>> passes_per_stage(12, 3, "cumulative"), passes_per_stage(12, 3, "sequential")
    (6, 12)
    """
    return max(1, round(2 * epochs / (slices + 1))) if mode == "cumulative" else epochs


def table(shards: int, slices: int, risk: Risk | None, place_by: PlaceBy) -> Table:
    """Where documents lie and demands fall, as `layout.Layout` places them on average.

    By hash both are even. By risk there are two classes (one cut-point); the lower has the first half
    of the slices, or of the shards, rounded down, the likelier the rest.
    """
    if risk is None or place_by == "hash":
        even = ((1 / (shards * slices),) * slices,) * shards
        return Table(even, even)
    size = slices if place_by == "risk-slices" else shards
    low = size // 2

    def line(first: float, second: float) -> list[float]:
        return [first / low] * low + [second / (size - low)] * (size - low)

    documents = line(1 - risk.subjects, risk.subjects)
    demands = line(1 - risk.demands, risk.demands)
    if place_by == "risk-slices":
        return Table(
            (tuple(d / shards for d in documents),) * shards,
            (tuple(d / shards for d in demands),) * shards,
        )
    return Table(
        tuple((d / slices,) * slices for d in documents),
        tuple((d / slices,) * slices for d in demands),
    )


def retrained_share(places: Table, demands: int, mode: Mode) -> float:
    """Expected passes over documents after so many demands at once, in passes over the corpus per pass of a
    stage.

    >>> two = table(2, 2, None, "hash")
    >>> round(retrained_share(two, 2, "cumulative") / whole_share(two, "cumulative") * 48)
    31
    """
    total = 0.0
    for documents, chances in zip(places.documents, places.demands, strict=True):
        seen = below = 0.0
        for size, chance in zip(documents, chances, strict=True):
            seen, below = seen + size, below + chance
            cost = seen if mode == "cumulative" else size
            total += cost * (1 - (1 - min(below, 1.0)) ** demands)
    return total


def mean_share(places: Table, demands: float, mode: Mode) -> float:
    """The same for a mean number of demands: 1/12 is one in a twelfth of the months, 2.5 is 2 or 3.

    >>> two = table(2, 2, None, "hash")
    >>> round(mean_share(two, 1 / 12, "cumulative") / retrained_share(two, 1, "cumulative") * 12)
    1
    """
    fewer = int(demands)
    part = demands - fewer
    shares = [retrained_share(places, n, mode) for n in (fewer, fewer + 1)]
    return (1 - part) * shares[0] + part * shares[1]


def whole_share(places: Table, mode: Mode) -> float:
    """The same for a training of everything."""
    total = 0.0
    for documents in places.documents:
        seen = 0.0
        for size in documents:
            seen += size
            total += seen if mode == "cumulative" else size
    return total


@dataclass(frozen=True)
class Workload:
    """A corpus, what is asked of it, and how fast this machine is.

    Args:
        deletions: demands a month, on average: one a year is 1/12.
        orders: of each shard's slices, and `blocks` as in the settings.
        parameters: of one adapter.
        tokens_per_second: real tokens in training; None where it is not known.
    """

    documents: int
    tokens_per_document: float
    deletions: float
    epochs: int = 12
    parameters: int = 0
    tokens_per_second: float | None = None
    risk: Risk | None = None
    mode: Mode = "cumulative"
    place_by: PlaceBy = "hash"
    orders: int = 1
    blocks: bool = False


def estimate(load: Workload, shards: int, slices: int) -> Estimate:
    """What a number of shards and slices costs under a workload."""
    passes = passes_per_stage(load.epochs, slices, load.mode)
    places = table(shards, slices, load.risk, load.place_by)
    whole = whole_share(places, load.mode)
    tokens = load.documents * load.tokens_per_document
    naive = load.epochs * tokens

    def cost(share: float, times: float = 1) -> Cost:
        spent = share * passes * tokens * times * load.orders
        rate = load.tokens_per_second
        return Cost(spent / naive, spent, None if rate is None else spent / rate)

    one = retrained_share(places, 1, load.mode)
    checkpoints = shards * slices * load.orders
    adapters = shards * load.orders if load.blocks else 3 * checkpoints
    return Estimate(
        shards=shards,
        slices=slices,
        mode=load.mode,
        place_by=load.place_by if load.risk else "hash",
        passes=passes,
        training=cost(whole),
        deletion=cost(one),
        one_by_one=cost(one, load.deletions),
        batched=cost(mean_share(places, load.deletions, load.mode)),
        checkpoints=checkpoints,
        storage=adapters * BYTES * load.parameters,
        survived=deletions_survived(slices, load.orders),
        documents_per_adapter=load.documents / shards,
    )


def propose(
    load: Workload,
    seconds_a_month: float,
    *,
    batched: bool = False,
    most_shards: int = 64,
    most_slices: int = 16,
) -> Iterator[Estimate]:
    """Divisions that keep within a budget, those that cost the least utility first.

    Fewer shards come first, since every adapter then knows more; among equals fewer slices, which
    need less room. For each number of shards the fewest slices that will do. SISA's own finding is
    the same order: shards cost accuracy, slices only time and storage.

    Args:
        seconds_a_month: what retraining may take.
        batched: retrain the demands of a month together.
    """
    for shards in range(1, most_shards + 1):
        for slices in range(load.orders, most_slices + 1):
            if load.risk and (
                (load.place_by == "risk-slices" and slices < 2)
                or (load.place_by == "risk-shards" and shards < 2)
            ):
                continue
            found = estimate(load, shards, slices)
            spent = (found.batched if batched else found.one_by_one).seconds
            if spent is not None and spent <= seconds_a_month:
                yield found
                break


def adapter_parameters(widths: Sequence[tuple[int, int]], rank: int) -> int:
    """Numbers in an adapter over linear maps of the given (in, out) widths: rank (in + out) each.

    >>> adapter_parameters([(576, 576), (576, 192)], 16)
    30720
    """
    return sum(rank * (wide + out) for wide, out in widths)
