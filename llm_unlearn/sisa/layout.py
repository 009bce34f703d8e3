"""Where a document trains: its shard, its slice, its place in the slice.

Guarantees: each is a pure function of the placement key, the recipe's placement rules and the document's
own data (its subject, its generation, its content, the group and risk that it declares), never of what
else the corpus holds; so adding or deleting one document moves no other. Sizes of shards are therefore
only equal on average, and under a rule by group or risk not even that. A shard named for a group
trains on nothing but that group's documents.

Not guaranteed: that the documents of one subject agree in what they declare; `ingest` and `train`
see to it (`declared.agree`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from llm_unlearn.config_placement import PlacementConfig, band
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.orders import slice_orders

Stage = tuple[int, int]  # (generation, slice within it)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a document says of itself that decides its place: its group, and its deletion risk."""

    group: str | None = None
    risk: float = 0.0


UNDECLARED: Final = Declared()
_BY_HASH: Final = PlacementConfig()
_NONE: Final[Mapping[bytes, Declared | None]] = MappingProxyType({})


@dataclass(frozen=True)
class Layout:
    """The keyed hashes that place subjects, and the rules by group and risk above them.

    Args:
        key: the placement key, 32 bytes, fixed for the life of a workspace.
        shards: number of shards.
        slices: slices per generation.
        placement: by what shard and slice are chosen.
        orders: in how many orders a shard's slices are trained (see `orders`).
    """

    key: bytes
    shards: int
    slices: int
    placement: PlacementConfig = _BY_HASH
    orders: int = 1

    def shard(self, subject: bytes, declared: Declared = UNDECLARED) -> int:
        """The shard of a subject, given its 16-byte mark and what its documents declare.

        By group: a named group has the shard that the recipe names; any other group is one place
        among the remaining shards, by the hash of its name; a subject without a group too, by its own.
        By risk: a class of risk has a band of shards, by hash within it.
        """
        rule = self.placement.shard_by
        if rule == "group":
            if declared.group in self.placement.groups:
                return self.placement.groups[declared.group]
            if declared.group is None:
                return self.rest[self._number("shard", subject) % len(self.rest)]
            return self.rest[self._number("group", declared.group.encode()) % len(self.rest)]
        low, high = self._band(self.shards, declared) if rule == "risk" else (0, self.shards)
        return low + self._number("shard", subject) % (high - low)

    def stage(self, subject: bytes, generation: int, declared: Declared = UNDECLARED) -> Stage:
        """The slice in which a subject's documents of one generation train.

        By risk: a class of risk has a band of slices, the likeliest to go last, by hash within it.
        """
        risky = self.placement.slice_by == "risk"
        low, high = self._band(self.slices, declared) if risky else (0, self.slices)
        part = self._number("slice", generation.to_bytes(4, "big") + subject) % (high - low)
        return generation, low + part

    @cached_property
    def places(self) -> tuple[Mapping[int, int], ...]:
        """For each order of a shard's slices, the place that each slice has in it."""
        made = slice_orders(self.slices, self.orders, self.placement.slice_bands(self.slices))
        return tuple({part: place for place, part in enumerate(order)} for order in made)

    @cached_property
    def rest(self) -> tuple[int, ...]:
        """The shards that no group has for itself."""
        named = set(self.placement.groups.values()) if self.placement.shard_by == "group" else set()
        return tuple(shard for shard in range(self.shards) if shard not in named)

    @property
    def required_groups(self) -> Mapping[int, str]:
        """The access group whose callers alone may be answered from a shard, by shard.

        A shard that is not in it learned only documents without access groups.
        """
        if not self.placement.own_shards:
            return {}
        return {shard: group for group, shard in self.placement.groups.items()}

    def order(self, record: Record) -> bytes:
        """Sort key of a document inside its slice."""
        return self._hash("order", record.handle + record.content)

    def _band(self, size: int, declared: Declared) -> tuple[int, int]:
        """The first and the last but one of `size` places that a class of risk has."""
        cuts = self.placement.risk_cuts
        c = sum(declared.risk >= cut for cut in cuts)
        return band(size, c, len(cuts) + 1)

    def _hash(self, domain: str, value: bytes) -> bytes:
        return hmac.digest(self.key, domain.encode() + b"\0" + value, "sha256")

    def _number(self, domain: str, value: bytes) -> int:
        return int.from_bytes(self._hash(domain, value)[:8], "big")


@dataclass(frozen=True)
class Slice:
    """One slice of one shard in one order: its documents in training order, what identifies its input.

    Attributes:
        inputs: SHA-256 over the marks of this slice and, chained, of all slices before it.
        order: which of the shard's orders, and `place` the slice's place in it, empty ones counted.
        before: the inputs of the slice trained before it; None for the first.
    """

    shard: int
    stage: Stage
    records: tuple[Record, ...]
    inputs: bytes
    order: int = 0
    place: int = 0
    before: bytes | None = None

    @property
    def name(self) -> str:
        """The checkpoint's name, the same wherever the same shard, stage and order are built."""
        generation, part = self.stage
        name = f"shard-{self.shard:02d}.generation-{generation:03d}.slice-{part:02d}"
        return f"{name}.order-{self.order:02d}" if self.order else name


def slice_number(name: str, slices: int, orders: int) -> int:
    """The number of a checkpoint among all of its shard, from its name: by generation, slice, order.

    >>> slice_number("shard-00.generation-002.slice-01", 3, 1)
    4
    >>> slice_number("shard-00.generation-002.slice-01.order-01", 3, 2)
    9
    """
    generation, part, *order = (int(piece.rsplit("-", 1)[1]) for piece in name.split(".")[1:])
    return ((generation - 1) * slices + part) * orders + (order[0] if order else 0)


def slices(
    layout: Layout,
    recipe: bytes,
    records: Iterable[Record],
    declared: Mapping[bytes, Declared | None] = _NONE,
) -> Mapping[int, list[Slice]]:
    """Lay out the live training documents.

    Within a subject, documents with the same normalised text train once: the one with the smallest
    (generation, handle) stands for all; across subjects all are kept.

    Args:
        recipe: digest of the recipe; it enters every chain, so another recipe matches nothing.
        records: live corpus records, in any order.
        declared: by handle, what a document declares; None has no place and is not trained on.

    Returns:
        For each shard number (every shard is a key) its non-empty slices in training order, one order
        after the other.
    """
    chosen: dict[tuple[bytes, bytes], Record] = {}
    for record in records:
        if declared.get(record.handle, UNDECLARED) is None:
            continue
        key = (record.subject, record.content)
        held = chosen.get(key)
        if held is None or (record.generation, record.handle) < (held.generation, held.handle):
            chosen[key] = record
    grouped: dict[int, dict[Stage, list[Record]]] = {}
    for record in chosen.values():
        said = declared.get(record.handle) or UNDECLARED
        stage = layout.stage(record.subject, record.generation, said)
        shard = layout.shard(record.subject, said)
        grouped.setdefault(shard, {}).setdefault(stage, []).append(record)
    for stages in grouped.values():
        for members in stages.values():
            members.sort(key=layout.order)
    return {
        shard: [
            part
            for order, places in enumerate(layout.places)
            for part in _chain(shard, order, places, grouped.get(shard, {}), recipe)
        ]
        for shard in range(layout.shards)
    }


def _chain(
    shard: int,
    order: int,
    places: Mapping[int, int],
    stages: Mapping[Stage, Sequence[Record]],
    recipe: bytes,
) -> Iterator[Slice]:
    """The slices of one order, each bound to all before it."""
    before: bytes | None = None
    for stage in sorted(stages, key=lambda stage: (stage[0], places[stage[1]])):
        where = (shard, stage, order) if order else (shard, stage)
        chain = hashlib.sha256((before or recipe) + repr(where).encode())
        for record in stages[stage]:
            chain.update(record.handle + record.content)
        inputs = chain.digest()
        records = tuple(stages[stage])
        yield Slice(shard, stage, records, inputs, order, places[stage[1]], before)
        before = inputs
