"""An audit: shards built anew from the documents that are here, and compared with what is there.

Guarantees: nothing is changed and nothing is written; every checkpoint that is asked for is derived again
from the base model under this workspace's recipe, in memory, and its plaintext digest compared with the
sealed file's and with the adapter that the last receipt names. Equal digests mean equal bytes.

Not guaranteed: that the documents themselves are honest; that a receipt made under another recipe, or over
other documents than are live now, can be compared (it says so); anything about other shards than those
asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_unlearn.errors import Damaged, NotFound, WorkspaceLocked
from llm_unlearn.opened import Opened
from llm_unlearn.sisa.build import Progress, build, shard_states
from llm_unlearn.sisa.checkpoints import Checkpoints, Listed, serialise
from llm_unlearn.sisa.layout import Slice
from llm_unlearn.sisa.train import TrainState
from llm_unlearn.takedown.receipt import chain_head
from llm_unlearn.takedown.verify import verify_receipt

Verdict = Literal["equal", "different", "damaged", "missing", "stale"]
ClaimVerdict = Literal[
    "equal", "different", "another recipe", "documents changed since", "cannot be compared"
]


@dataclass(frozen=True)
class Compared:
    """One checkpoint: what it should be, what is there, and what follows.

    Attributes:
        derived: SHA-256 (hex) of the checkpoint built anew; None where none is asked for.
        found: that of the one on disk; None where there is none to be read.
        verdict: `equal`, `different`; `damaged` (cannot be read); `missing` (not trained yet, or waits
            for `train`); `stale` (no live documents ask for it: it does not serve).
    """

    name: str
    shard: int
    derived: str | None
    found: str | None
    verdict: Verdict


@dataclass(frozen=True)
class Claimed:
    """What the last receipt says of one shard's adapter.

    Attributes:
        verdict: `equal` if one of the derived checkpoints has that digest; `another recipe` if the receipt
            was written under one. Otherwise what the checkpoint on disk with that digest says:
            `different`, it was trained on just what is asked for now, yet that gives other bits;
            `documents changed since`, it was trained on other documents than are live now (some were
            fenced, held, released or kept after the receipt); `cannot be compared`, there is none any
            more.
    """

    receipt: int
    shard: int
    digest: str
    verdict: ClaimVerdict


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    checkpoints: tuple[Compared, ...]
    claims: tuple[Claimed, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is different or damaged."""
        good = all(c.verdict not in ("different", "damaged") for c in self.checkpoints)
        return good and all(c.verdict != "different" for c in self.claims)


class InMemory(Checkpoints):
    """Checkpoints that are kept as digests and never written, on top of those that are listed.

    Args:
        below: where `load` finds checkpoints that were there before; None where nothing is loaded.
    """

    def __init__(self, below: Checkpoints | None = None) -> None:
        self._below = below
        self.digests: dict[str, str] = {}
        self._by_inputs: dict[bytes, str] = {}

    def listed(self) -> dict[str, Listed]:
        """Those that were there before."""
        return {} if self._below is None else self._below.listed()

    def load(self, listed: Listed) -> TrainState:
        """One that was there before."""
        if self._below is None:
            raise AssertionError("nothing is loaded where everything is built anew")
        return self._below.load(listed)

    def save(self, part: Slice, state: TrainState) -> None:
        """Keep the digest of the plaintext."""
        digest = hashlib.sha256(serialise(state, self._before(part, state))).hexdigest()
        self.digests[part.name] = self._by_inputs[part.inputs] = digest

    def digest_of(self, inputs: bytes) -> str:
        """The digest of one kept here, or of one that was there before."""
        if inputs in self._by_inputs:
            return self._by_inputs[inputs]
        if self._below is None:
            raise AssertionError("what everything is built from was built before it")
        return self._below.digest_of(inputs)


def audit(
    opened: Opened, shards: Collection[int] | None = None, progress: Progress | None = None
) -> Audit:
    """Derive shards again and compare.

    Args:
        shards: which; None means all.

    Raises:
        NotFound: there is no such shard.
        RecipeMismatch: this machine computes other bits than the workspace was trained with.
        WorkspaceLocked: the workspace changed meanwhile.
        VerificationFailed: the last receipt does not hold.
    """
    count = opened.training.shards
    chosen = sorted(range(count) if shards is None else set(shards))
    for shard in chosen:
        if not 0 <= shard < count:
            raise NotFound(f"There is no shard {shard}.", f"There are 0 to {count - 1}.")
    change = opened.database.change()
    wanted, listed = opened.wanted(), opened.checkpoints.listed()
    derived = derive(opened, chosen, progress)
    rows = []
    for shard in chosen:
        asked = {part.name: part for part in wanted[shard]}
        there = {name for name, item in listed.items() if item.shard == shard}
        for name in sorted(asked.keys() | there):
            part, item = asked.get(name), listed.get(name)
            rows.append(_compare(opened, shard, name, part, item, derived.get(name)))
    claims = _claims(opened, chosen, derived, rows)
    if opened.database.change() != change:
        raise WorkspaceLocked(
            f"{opened.path} was changed while it was audited.", "Run the audit once more."
        )
    return Audit(tuple(rows), claims)


def derive(
    opened: Opened, shards: Collection[int], progress: Progress | None = None
) -> dict[str, str]:
    """Build shards anew from the live documents, in memory: the digest (hex) of each checkpoint by name.

    Raises:
        RecipeMismatch: this machine computes other bits than the workspace was trained with.
    """
    opened.check_recipe()
    wanted, fresh = opened.wanted(), InMemory()
    build(
        shard_states({shard: wanted[shard] for shard in shards}, {}),
        opened.models.host,
        fresh,
        opened.training,
        opened.examples,
        progress,
    )
    return fresh.digests


def _compare(
    opened: Opened,
    shard: int,
    name: str,
    part: Slice | None,
    item: Listed | None,
    derived: str | None,
) -> Compared:
    if item is None:
        return Compared(name, shard, derived, None, "missing")
    try:
        found = opened.checkpoints.digest(item)
    except Damaged:
        return Compared(name, shard, derived, None, "damaged")
    if part is None or item.inputs != part.inputs:
        return Compared(name, shard, None, found, "stale")
    return Compared(name, shard, derived, found, "equal" if derived == found else "different")


def _claims(
    opened: Opened,
    chosen: Collection[int],
    derived: Mapping[str, str],
    rows: Sequence[Compared],
) -> tuple[Claimed, ...]:
    head = chain_head(opened.path / "receipts")
    if not head.number:
        return ()
    path = opened.path / "receipts" / f"{head.number:08d}.json"
    key = opened.keyring.directory / "receipts.pub.pem"
    receipt = verify_receipt(path, key).receipt
    same = receipt.state_after.recipe == opened.recipe_digest().hex()
    found = set(derived.values())

    def verdict(shard: int, digest: str) -> ClaimVerdict:
        if not same:
            return "another recipe"
        if digest in found:
            return "equal"
        there = {c.verdict for c in rows if c.shard == shard and c.found == digest}
        if "different" in there:
            return "different"
        return "documents changed since" if "stale" in there else "cannot be compared"

    return tuple(
        Claimed(
            receipt.number, adapter.shard, adapter.digest, verdict(adapter.shard, adapter.digest)
        )
        for adapter in receipt.state_after.adapters
        if adapter.shard in chosen
    )
