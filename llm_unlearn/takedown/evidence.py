"""What a takedown measures with the removed text while this process still holds it in memory.

Guarantees: nothing here is written to disk; without the text (a takedown resumed by another
process) every measurement answers None. The scan looks for the text, its tokens, its vectors and
its data keys in every file of the workspace and of the key directory, passages that retained
documents also hold excepted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.documents import Document
from llm_unlearn.errors import UnlearnError
from llm_unlearn.models.lora import AdapterState
from llm_unlearn.opened import Opened
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.build import Progress, build, shard_states
from llm_unlearn.sisa.layout import Slice
from llm_unlearn.sisa.train import TrainState
from llm_unlearn.takedown.probing import NAMES, Leakage, probe
from llm_unlearn.takedown.receipt import Probe, Scan, decimal
from llm_unlearn.takedown.scanning import scan_for

if TYPE_CHECKING:
    from llm_unlearn.takedown.journal import Case

Asked: TypeAlias = "tuple[AdapterState | None, Sequence[Document]]"
"""Documents, and the adapter that they are asked of."""


@dataclass(frozen=True)
class Evidence:
    """The removed text and what was derived from it, in memory only.

    `learned` names each removed training document by its handle, with its shard.
    """

    documents: tuple[Document, ...]
    learned: tuple[tuple[bytes, Document, int], ...]
    tokens: tuple[tuple[int, ...], ...]
    vectors: tuple[NDArray[np.float32], ...]
    keys: tuple[bytes, ...]
    probe: bool

    @classmethod
    def gather(cls, opened: Opened, removed: Collection[Record], *, probe: bool) -> Evidence:
        """Read what is going to be removed, before it is removed."""
        kept = [record for record in removed if record.fate != "refused"]
        documents = {record.handle: opened.document(record) for record in kept}
        learned = [
            (record.handle, documents[record.handle], shard)
            for record in kept
            if record.fate == "corpus"
            and record.generation < opened.ledger.generation
            and (shard := opened.shard_of(record)) is not None
        ]
        tokens: tuple[tuple[int, ...], ...] = ()
        probing = probe and bool(learned)
        if probing:
            try:
                found = [
                    example for r in kept if r.fate == "corpus" for example in opened.examples(r)
                ]
                tokens = tuple(example.ids for example in found)
            except UnlearnError:
                probing = (
                    False  # no model here: the demand is met, and the receipt says "not probed"
                )
        return cls(
            documents=tuple(documents.values()),
            learned=tuple(learned),
            tokens=tokens,
            vectors=tuple(opened.vectors(record) for record in kept),
            keys=tuple(opened.keyring.key(record.slot) for record in removed),
            probe=probing,
        )


class Moments:
    """Leakage at the moments of a takedown, and the final scan."""

    def __init__(
        self, opened: Opened, evidence: Evidence | None, progress: Progress | None = None
    ) -> None:
        self._opened = opened
        self._evidence = evidence
        self._progress = progress
        self._before: dict[str, float] | None = None  # empty: what served is not there any more
        self._rolled_back: dict[str, float] | None = None

    def before_and_rolled_back(self, cases: Sequence[Case]) -> None:
        """Measure on the checkpoints that served before, and on those that serve now.

        Args:
            cases: what is carried out; each document is asked of what served before its own case.
        """
        if self._evidence is None or not self._evidence.probe:
            return
        try:
            self._before = self._measure_before(cases)
            self._rolled_back = self._measure(self._serving())
        except UnlearnError:
            self._before = None  # what cannot be measured must not keep the text from being removed

    def after(self) -> list[Probe] | None:
        """Measure on what serves after retraining; None when nothing was measured before."""
        if self._before is None or self._rolled_back is None:
            return None
        after = self._measure(self._serving())
        never = self._never_had()
        return [
            Probe(
                name=f"{name}, mean over {len(self._evidence.learned) if self._evidence else 0} "
                "removed training documents",
                before=decimal(self._before.get(name)),
                rolled_back=decimal(self._rolled_back[name]),
                after=decimal(after[name]),
                never_had="not built" if never is None else decimal(never[name]),
            )
            for name in NAMES
        ]

    def forget(self) -> None:
        """Drop the text: not all of it goes, so that probes and a scan for it would prove nothing."""
        self._evidence = None

    def scan(self) -> Scan | None:
        """Search the workspace and the key directory for what was removed."""
        found = self._evidence
        if found is None:
            return None
        return scan_for(
            self._opened,
            documents=found.documents,
            tokens=found.tokens,
            vectors=found.vectors,
            keys=found.keys,
        )

    def _serving(self) -> dict[int, str]:
        return {s.shard: s.serving.name for s in self._opened.states() if s.serving}

    def _measure_before(self, cases: Sequence[Case]) -> dict[str, float]:
        """The same of what served before; nothing if one of those checkpoints is not there any more."""
        checkpoints = self._opened.checkpoints
        listed = checkpoints.listed()
        asked: dict[str | None, list[Document]] = defaultdict(list)
        for handle, document, shard in self._evidence.learned if self._evidence else ():
            own = next((case for case in cases if handle.hex() in case.handles), None)
            if own is None:
                return {}
            name = own.served.get(shard)  # None: the base model alone
            item = listed.get(name or "")
            there = item is not None and item.inputs.hex() == own.served_inputs.get(shard)
            if name is not None and not there:
                return {}
            asked[name].append(document)
        loaded = {name: checkpoints.load(listed[name]).adapter for name in asked if name}
        return self._probe([(loaded.get(name or ""), asked[name]) for name in asked])

    def _measure(self, names: Mapping[int, str]) -> dict[str, float]:
        """Means over all removed training documents, each asked of its shard's checkpoint."""
        checkpoints = self._opened.checkpoints
        listed = checkpoints.listed()
        wanted = {shard: listed.get(names.get(shard, "")) for shard in self._shards()}
        return self._probe(
            self._asked(
                {shard: checkpoints.load(item).adapter for shard, item in wanted.items() if item}
            )
        )

    def _asked(self, adapters: Mapping[int, AdapterState]) -> list[Asked]:
        """Each shard's documents with its adapter; without one, with the base model."""
        learned = self._evidence.learned if self._evidence else ()
        return [
            (adapters.get(shard), [document for _, document, where in learned if where == shard])
            for shard in self._shards()
        ]

    def _never_had(self) -> dict[str, float] | None:
        """The same of shards built from the base model and the retained documents alone, in memory.

        None where the configuration does not ask for it, or where it cannot be built here.
        """
        opened = self._opened
        if not opened.config.takedown.never_had:
            return None
        wanted = opened.wanted()
        states = shard_states({shard: wanted[shard] for shard in self._shards()}, {})
        last = {
            lane.wanted[-1].name: state.shard
            for state in states
            for lane in state.lanes[:1]  # the one that serves when all are whole
        }
        built: dict[int, AdapterState] = {}

        def keep(part: Slice, made: TrainState) -> None:
            if part.name in last:
                built[last[part.name]] = made.adapter

        try:
            opened.check_recipe()
            build(
                states,
                opened.models.host,
                opened.checkpoints,  # from which nothing is read, and to which nothing is written
                opened.training,
                opened.examples,
                self._progress,
                keep,
            )
            return self._probe(self._asked(built))
        except UnlearnError:
            return None  # a comparison that cannot be made must not hold back the receipt

    def _shards(self) -> list[int]:
        learned = self._evidence.learned if self._evidence else ()
        return sorted({shard for _, _, shard in learned})

    def _probe(self, asked: Sequence[Asked]) -> dict[str, float]:
        """Ask documents of adapters; with None of the base model alone."""
        opened = self._opened
        values = [
            probe(
                opened.models.host,
                adapter,
                documents,
                max_tokens=opened.training.max_tokens,
                max_new_tokens=opened.config.answering.max_new_tokens,
            )
            for adapter, documents in asked
        ]
        pooled = Leakage(
            tuple(v for leakage in values for v in leakage.probability),
            tuple(v for leakage in values for v in leakage.extraction),
            tuple(v for leakage in values for v in leakage.rouge),
            tuple(v for leakage in values for v in leakage.answers),
        )
        return pooled.means()
