"""What an answer is made of, decrypted at the moment it is given."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_unlearn.retrieval import parts
from llm_unlearn.retrieval.live import Found, Note
from llm_unlearn.retrieval.vault import Vault


@dataclass(frozen=True, slots=True)
class Hit:
    """One chunk that answers: characters `start` to `end` of its document's content.

    `score` is the cosine with the query, exact in float64, in [-1, 1], whatever ranked the hit.
    `date` is YYYY-MM-DD or empty.
    """

    handle: bytes
    subject_mark: bytes
    document: str
    subject: str
    source: str
    license: str
    start: int
    end: int
    text: str
    score: float
    tags: tuple[str, ...] = ()
    date: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_hits(vault: Vault, found: Sequence[Found]) -> list[Hit]:
    """The chunks found, with their texts from the vault.

    Raises:
        KeyDestroyed: one of the documents has been deleted.
        Damaged: one of them does not decrypt.
    """
    records = {entry.handle: entry.note.record for _, entry, _ in found}
    bodies = vault.read_many(list(records.values()), "body")
    texts = {handle: parts.content_of(body) for handle, body in zip(records, bodies, strict=True)}
    hits = []
    for score, entry, chunk in found:
        note: Note = entry.note
        start, end = note.spans[chunk].tolist()
        hits.append(
            Hit(
                handle=entry.handle,
                subject_mark=note.record.subject,
                document=note.meta.id,
                subject=note.meta.subject,
                source=note.meta.source,
                license=note.meta.license,
                start=start,
                end=end,
                text=texts[entry.handle][start:end],
                score=score,
                tags=note.meta.tags,
                date=note.meta.date,
                metadata=copy.deepcopy(note.meta.metadata),  # the caller may change it
            )
        )
    return hits
