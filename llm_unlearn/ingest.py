"""Separation: take documents in, each to the store, to the corpus, or refused.

Guarantees: a file enters whole or not at all, even when killed half-way (documents are staged, then
made live in one transaction; a staged remainder is swept by the next writer); a document never changes
silently (the same id with the same words is skipped, with other words refused); a text removed by a
takedown is not taken in again. Documents stream: memory holds one batch of them, and of all others
an id, a digest and where they went.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from llm_unlearn.config import Config
from llm_unlearn.config_placement import PlacementConfig
from llm_unlearn.documents import Document, normalise
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.parts import pack_body, pack_meta, unpack_meta
from llm_unlearn.retrieval.store import Store
from llm_unlearn.retrieval.vault import NewRecord, Record, Vault
from llm_unlearn.separation import Decision, decide
from llm_unlearn.sisa.declared import agree, declared, of_subject
from llm_unlearn.sisa.layout import Declared
from llm_unlearn.takedown.tombstones import Tombstones

BATCH = 64


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one document goes and why; `known` when it was there already."""

    id: str
    subject: str
    decision: Decision
    known: bool = False


@dataclass
class IngestReport:
    """What an ingest did, or with a dry run would do."""

    placed: list[Placed] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """Documents by fate; those that were there already count as `known`."""
        return Counter("known" if p.known else p.decision.fate for p in self.placed)

    def rules(self) -> Counter[tuple[str, str, str]]:
        """New documents by (fate, rule, reason)."""
        return Counter(
            (p.decision.fate, p.decision.rule, p.decision.reason)
            for p in self.placed
            if not p.known
        )


def ingest(
    documents: Iterable[Document],
    *,
    config: Config,
    vault: Vault,
    tombstones: Tombstones,
    preparer: Callable[[], Store],
    generation: int,
    placement: PlacementConfig,
    dry_run: bool = False,
    piecewise: bool = False,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Decide on each document and keep it accordingly.

    Args:
        piecewise: each batch counts as soon as it is durable, and stays whatever comes after it.
        preparer: gives the store whose `prepare` cuts and embeds; only called when needed.
        placement: by what training documents are placed.
        progress: called with the number of documents seen so far.

    Raises:
        InputError: an id is taken by a document with other words or other data; or a document that
            would train declares no place, or another one than its subject has.
    """
    report = IngestReport()
    seen: dict[str, bytes] = {}  # id -> digest of the document, so far in this run
    subjects: dict[bytes, tuple[Declared, str]] = {}
    try:
        for batch in _batches(documents):
            records = []
            for document in batch:
                placed = _place(document, config, placement, vault, tombstones, seen)
                report.placed.append(placed)
                if placement.asks and placed.decision.fate == "corpus" and not placed.known:
                    check_subject(document, placement, vault, subjects)
                if placed.known or dry_run or placed.decision.rule == "tombstone":
                    continue
                records.append(new_record(document, placed.decision, preparer, generation))
                if progress is not None:
                    progress(len(report.placed))
            if records:
                vault.add(records, state="live" if piecewise else "staged")
        if not dry_run:
            vault.promote_staged()
    except BaseException:
        if not dry_run:  # a dry run holds no lock: what is staged belongs to another process
            vault.delete(record.handle for record in vault.records(states=("staged",)))
        raise
    return report


def _place(
    document: Document,
    config: Config,
    placement: PlacementConfig,
    vault: Vault,
    tombstones: Tombstones,
    seen: dict[str, bytes],
) -> Placed:
    held = vault.find(vault.mark("id", document.id))
    there = held is not None and held.state == "live" and _same(document, held, vault)
    removed = (
        None if there else tombstones.refuses(document)
    )  # a correction is like what it corrected
    if removed is not None:
        return Placed(document.id, document.subject, Decision("refused", "tombstone", removed))
    decision = decide(document, config.separation, own_shards=placement.own_shards)
    digest = hashlib.sha256(pack_body(document)).digest()
    twin = seen.setdefault(document.id, digest)
    same = twin == digest and (held is None or there or _same(document, held, vault))
    if not same:
        raise InputError(
            f"Document {document.id!r} is already here with other words or other data.",
            "Give it another id, or delete the old one first; nothing was ingested.",
        )
    known = held is not None or twin is not digest
    return Placed(document.id, document.subject, decision, known=known)


def check_subject(
    document: Document,
    placement: PlacementConfig,
    vault: Vault,
    subjects: dict[bytes, tuple[Declared, str]],
) -> None:
    """A document trains where the others of its subject do."""
    said, mark = declared(document, placement), vault.mark("subject", document.subject)
    if mark not in subjects:
        found = of_subject(vault, document.subject, placement)
        subjects[mark] = found or (said, document.id)
    before, name = subjects[mark]
    agree(before, said, name, document.id, document.subject)


def _same(document: Document, held: Record, vault: Vault) -> bool:
    """Whether a record holds this very document: words, subject, source, licence, tags, groups."""
    if held.fate != "refused":
        return vault.read(held, "body") == pack_body(document)
    there = unpack_meta(vault.read(held, "meta"))
    here = unpack_meta(pack_meta(_wordless(document), there.rule, there.reason))
    content = vault.mark("content", normalise(document.content))
    return there == here and held.content == content


def new_record(
    document: Document, decision: Decision, preparer: Callable[[], Store], generation: int
) -> NewRecord:
    """What the vault keeps of a document."""
    if decision.fate == "refused":  # its words are not kept, so they are not embedded either
        parts = {"meta": pack_meta(_wordless(document), decision.rule, decision.reason)}
    else:
        parts = preparer().prepare(document, rule=decision.rule, reason=decision.reason)
    return NewRecord(
        id=document.id,
        subject=document.subject,
        source=document.source,
        content=normalise(document.content),
        fate=decision.fate,
        generation=generation,
        parts=parts,
    )


def _wordless(document: Document) -> Document:
    """Without its metadata, which may hold any words."""
    return document.model_copy(update={"metadata": {}})


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, BATCH)):
        yield batch
