"""What a receipt is made of: digests before and after, the closure in numbers, and the receipt itself.

Guarantees: it reads and computes, and changes nothing. Digests of the state before are of the moment
before the fence, whenever they are asked for: what a request fenced counts as live for them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llm_unlearn.errors import Damaged, UnlearnError
from llm_unlearn.opened import Opened
from llm_unlearn.sisa.build import shard_states
from llm_unlearn.sisa.checkpoints import Listed
from llm_unlearn.sisa.layout import Slice
from llm_unlearn.takedown import receipt as receipts
from llm_unlearn.takedown.journal import Case
from llm_unlearn.takedown.merkle import Tree
from llm_unlearn.takedown.plan import Plan

RULE = (
    "Every document was compared with the texts of the request, folded to bare letters: equal "
    "letters (exact); word shingles or letters in common above a threshold (near-duplicate); one "
    "text within the other, or a long enough run of words in common (quotation); close vectors "
    "(paraphrase: shown to people, not deleted)."
)
DISPOSAL = (
    "data keys overwritten with zeros in place and synced; then rows removed, pages zeroed and the "
    "write-ahead log truncated; checkpoint keys likewise, then their files removed"
)
UNKNOWN = "0" * 64
"""Stands for a digest that cannot be computed; a limit of the receipt says so."""


@dataclass(frozen=True)
class Earlier:
    """The state before a fence."""

    store: str
    adapters: Mapping[int, str]
    serving: Mapping[int, Slice]  # shard -> what the checkpoint that served was trained on
    asked: Mapping[int, Sequence[Slice]]
    rebuilt: frozenset[int] = (
        frozenset()
    )  # shards trained since the fence, without what it took out

    @classmethod
    def gather(cls, opened: Opened, fenced: Collection[bytes]) -> Earlier:
        """Compute it.

        Args:
            fenced: documents that were live before and may be fenced by now.
        """
        asked = opened.wanted_without((), back=fenced)
        listed = opened.checkpoints.listed()
        serving = {s.shard: s.serving for s in shard_states(asked, listed) if s.serving}
        now = {part.inputs for parts in opened.wanted().values() for part in parts}
        rebuilt = {
            shard
            for shard, parts in asked.items()
            for part in parts
            if part.name in listed
            and listed[part.name].inputs != part.inputs
            and listed[part.name].inputs in now
        }
        try:
            also = _out_of_use(opened, fenced)
            store = hashlib.sha256(opened.store.canonical_bytes(also=also)).hexdigest()
        except UnlearnError:
            store = UNKNOWN  # other chunks, or no embedder: that must keep no text in the workspace
        return cls(
            store,
            {shard: digest_of(opened, listed[part.name]) for shard, part in serving.items()},
            serving,
            asked,
            frozenset(rebuilt),
        )

    def commit(self, salt: bytes) -> receipts.Before:
        """Commitments to it."""
        return receipts.commit_state(salt, store=self.store, adapters=self.adapters)

    def served(self, shards: Collection[int]) -> tuple[dict[int, str], dict[int, str]]:
        """Of these shards, the checkpoints that served: names, and what they were trained on (hex).

        What served in a shard that was trained since the fence is not known: an empty name.
        """
        known = {s: p for s, p in self.serving.items() if s in shards and s not in self.rebuilt}
        unknown = dict.fromkeys(self.rebuilt.intersection(shards), "")
        names = {shard: part.name for shard, part in known.items()}
        return names | unknown, {shard: part.inputs.hex() for shard, part in known.items()}

    def notes(self, touched: Collection[int]) -> list[str]:
        """What a receipt must say of it."""
        notes = []
        if self.store == UNKNOWN:
            notes.append(
                "That the digest of the store before is committed to: it could not be computed, and 64 "
                "zeros stand for it."
            )
        notes += [
            f"That state_before has what shard {shard} knew when the request came: shard {shard} was "
            "trained again, without the text, before the request was approved."
            for shard in sorted(self.rebuilt.intersection(touched))
        ]
        return notes

    def touched(self, going: Collection[bytes]) -> list[int]:
        """The shards that these documents were in."""
        return sorted({self.homes[handle] for handle in going if handle in self.homes})

    @cached_property
    def homes(self) -> dict[bytes, int]:
        """The shard of each document that was trained on."""
        return {
            record.handle: shard
            for shard, parts in self.asked.items()
            for part in parts
            for record in part.records
        }


def _out_of_use(opened: Opened, handles: Collection[bytes]) -> list[bytes]:
    found = opened.vault.find_many(list(handles)).values()
    return [r.handle for r in found if r.state == "fenced" and r.fate == "store"]


def closure_of(
    opened: Opened, plan: Plan, *, open_: int, fenced: int, declined: int
) -> receipts.Closure:
    """A plan and its decision in numbers."""

    def count(*kinds: str) -> receipts.ByFate:
        items = (*plan.removed, *plan.flagged, *plan.held_flagged, *plan.mentions)
        fates = [item.record.fate for item in items if item.kind in kinds]
        return receipts.ByFate(store=fates.count("store"), corpus=fates.count("corpus"))

    settings = opened.config.takedown.model_dump()
    numbers = {k: v for k, v in settings.items() if not isinstance(v, bool)}
    return receipts.Closure(
        rule=RULE,
        thresholds={k: receipts.decimal(float(v)) for k, v in sorted(numbers.items())},
        compared=plan.compared,
        requested=count("requested"),
        exact=count("exact"),
        near_duplicate=count("near-duplicate"),
        quotation=count("quotation"),
        flagged=count("paraphrase"),
        mentions=count("mention"),
        review=receipts.Review(
            removed=sum(item.kind == "paraphrase" for item in plan.removed),
            kept=len(plan.flagged) + len(plan.held_flagged) - open_,
            open=open_,
            fenced=fenced,
            declined=declined,
        ),
    )


@dataclass(frozen=True)
class Facts:
    """The state after, once for all receipts that are written of it."""

    store: str
    adapters: dict[int, str]
    waiting: dict[int, int]  # shard -> slices that are not trained again
    base_model: str
    embedder: str

    @classmethod
    def gather(cls, opened: Opened) -> Facts:
        """Compute it.

        Raises:
            UnlearnError: a model is not here, or the store was filled with other settings.
        """
        states, listed = opened.states(), opened.checkpoints.listed()
        recipe = opened.saved_recipe()
        return cls(
            hashlib.sha256(opened.store.canonical_bytes()).hexdigest(),
            {s.shard: digest_of(opened, listed[s.serving.name]) for s in states if s.serving},
            {s.shard: len(s.missing) for s in states},
            recipe.base_model if recipe else opened.models.base_digest,
            opened.models.embedder.digest,
        )


def make_receipt(
    opened: Opened,
    case: Case,
    finished: str,
    facts: Facts,
    tree: Tree,
    scan: receipts.Scan | None,
) -> receipts.Receipt:
    """The receipt of a case that is carried out, next in the chain."""
    head = receipts.chain_head(opened.path / "receipts")
    recipe = opened.saved_recipe()
    if case.closure is None or case.before is None:
        raise AssertionError("an approved case has a closure")
    return receipts.build_receipt(
        number=head.number + 1,
        previous=head.digest,
        log=receipts.LogPlace(size=len(tree.leaves), root=tree.root().hex()),
        request=receipts.commit_request(
            bytes.fromhex(case.salt), kind=case.kind, id=case.request_id, selectors=case.selectors
        ),
        times=receipts.Times(
            received=case.received, acknowledged=case.acknowledged, finished=finished
        ),
        closure=case.closure,
        done=receipts.Done(
            documents_deleted=receipts.ByFate(store=case.store_count, corpus=case.corpus_count),
            documents_held=case.held,
            keys_destroyed=len(case.handles) + len(case.checkpoints) + len(case.retired),
            checkpoints=tuple(case.checkpoints),
            disposal=DISPOSAL,
            shards=tuple(case.shards),
            together=case.together,
        ),
        state_after=receipts.State(
            store=facts.store,
            adapters=tuple(
                receipts.AdapterDigest(shard=shard, digest=digest)
                for shard, digest in sorted(facts.adapters.items())
            ),
            recipe=opened.recipe_digest().hex(),
            base_model=facts.base_model,
            embedder=facts.embedder,
            environment=recipe.versions if recipe else {},
            code_version=importlib.metadata.version("llm-unlearn"),
        ),
        state_before=case.before,
        scan=scan,
        probes=case.probes,
        copies=case.copies,
        waiting=sum(facts.waiting.get(shard, 0) for shard in case.touched),
        notes=(*case.notes, *_unread(facts)),
    )


def _unread(facts: Facts) -> list[str]:
    return [
        f"That the adapter of shard {shard} is what was trained: its file cannot be read, and 64 zeros "
        "stand for its digest."
        for shard, digest in sorted(facts.adapters.items())
        if digest == UNKNOWN
    ]


def digest_of(opened: Opened, item: Listed) -> str:
    """Digest of a checkpoint; of one that cannot be read any more, 64 zeros.

    A damaged file must not keep a takedown from being accepted.
    """
    try:
        return opened.checkpoints.digest(item)
    except Damaged:
        return UNKNOWN
