"""Checking a record against itself: what `Store.verify` does for each.

Guarantees: `check_record` passes only if every part decrypts and parses, the marks in the row are
those of the values inside, and the vectors are those that the index holds.
"""

from __future__ import annotations

import numpy as np

from llm_unlearn.documents import normalise
from llm_unlearn.errors import Damaged
from llm_unlearn.retrieval import parts
from llm_unlearn.retrieval.index import VectorIndex
from llm_unlearn.retrieval.vault import Record, Vault


def check_record(vault: Vault, index: VectorIndex, record: Record) -> None:
    """Raise `Damaged` unless the record agrees with itself and, when live, with the index."""
    meta = parts.unpack_meta(vault.read(record, "meta"))
    document = parts.unpack_body(vault.read(record, "body"))
    spans, vectors = parts.unpack_vectors(vault.read(record, "vectors"))
    mark = vault.mark
    marks = (mark("id", meta.id), mark("subject", meta.subject), mark("source", meta.source))
    good = (
        marks == (record.handle, record.subject, record.source)
        and document.id == meta.id
        and mark("content", normalise(document.content)) == record.content
        and int(spans.max(initial=0)) <= len(document.content)
    )
    entry = index.get(record.handle)
    if good and entry is not None:
        good = np.array_equal(index.vectors(entry), vectors)
        good = good and index.codes(entry) == index.encode(vectors)
    if not good or (entry is None and record.state == "live"):
        raise Damaged(
            f"the record {record.handle.hex()} contradicts itself or the index.",
            "Restore a backup.",
        )
