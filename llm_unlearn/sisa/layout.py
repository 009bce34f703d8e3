"""Where a document trains: its shard, its slice, its place in the slice.

Guarantees: each is a pure function of the placement key and the document's own data (its subject, its
generation, its content), never of what else the corpus holds; so adding or deleting one document
moves no other. The sizes of shards are therefore only equal on average.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llm_unlearn.retrieval.vault import Record

Stage = tuple[int, int]  # (generation, slice within it)


@dataclass(frozen=True)
class Layout:
    """The keyed hashes that place subjects.

    Args:
        key: the placement key, 32 bytes, fixed for the life of a workspace.
        shards: number of shards.
        slices: slices per generation.
    """

    key: bytes
    shards: int
    slices: int

    def shard(self, subject: bytes) -> int:
        """The shard of a subject, given its 16-byte mark."""
        return self._number("shard", subject) % self.shards

    def stage(self, subject: bytes, generation: int) -> Stage:
        """The slice in which a subject's documents of one generation train."""
        part = self._number("slice", generation.to_bytes(4, "big") + subject) % self.slices
        return generation, part

    def order(self, record: Record) -> bytes:
        """Sort key of a document inside its slice."""
        return self._hash("order", record.handle + record.content)

    def _hash(self, domain: str, value: bytes) -> bytes:
        return hmac.digest(self.key, domain.encode() + b"\0" + value, "sha256")

    def _number(self, domain: str, value: bytes) -> int:
        return int.from_bytes(self._hash(domain, value)[:8], "big")


@dataclass(frozen=True)
class Slice:
    """One slice of one shard: its documents in training order and what identifies its input.

    `inputs` is SHA-256 over the marks of this slice and, chained, of all slices before it.
    """

    shard: int
    stage: Stage
    records: tuple[Record, ...]
    inputs: bytes

    @property
    def name(self) -> str:
        """The checkpoint's name, the same wherever the same shard and stage are built."""
        generation, part = self.stage
        return f"shard-{self.shard:02d}.generation-{generation:03d}.slice-{part:02d}"


def slices(layout: Layout, recipe: bytes, records: Iterable[Record]) -> Mapping[int, list[Slice]]:
    """Lay out the live training documents.

    Within a subject, documents with the same normalised text train once: the one with the smallest
    (generation, handle) stands for all; across subjects all are kept.

    Args:
        recipe: digest of the recipe; it enters every chain, so another recipe matches nothing.
        records: live corpus records, in any order.

    Returns:
        For each shard number (every shard is a key) its non-empty slices in training order.
    """
    chosen: dict[tuple[bytes, bytes], Record] = {}
    for record in records:
        key = (record.subject, record.content)
        held = chosen.get(key)
        if held is None or (record.generation, record.handle) < (held.generation, held.handle):
            chosen[key] = record
    grouped: dict[tuple[int, Stage], list[Record]] = {}
    for record in chosen.values():
        place = (layout.shard(record.subject), layout.stage(record.subject, record.generation))
        grouped.setdefault(place, []).append(record)
    result: dict[int, list[Slice]] = {shard: [] for shard in range(layout.shards)}
    for (shard, stage), members in sorted(grouped.items(), key=lambda item: item[0]):
        members.sort(key=layout.order)
        before = result[shard][-1].inputs if result[shard] else recipe
        chain = hashlib.sha256(before + repr((shard, stage)).encode())
        for record in members:
            chain.update(record.handle + record.content)
        result[shard].append(Slice(shard, stage, tuple(members), chain.digest()))
    return result
