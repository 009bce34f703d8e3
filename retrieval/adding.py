"""New documents into a vault: all or none, or piece by piece.

Guarantees: `add_whole` shows all of its records at one moment or, killed, none; `add_pieces` shows
each piece when it is durable, and called again adds only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.parts import pack_body
from llm_unlearn.retrieval.prepare import Preparer
from llm_unlearn.retrieval.vault import NewRecord, Vault

_BATCH_BYTES = 1 << 23  # packed parts per transaction
_PIECE = 64  # documents per transaction


def add_whole(vault: Vault, records: Iterator[NewRecord]) -> int:
    """Add records, all or none; how many. They are staged in batches.

    Raises:
        InputError: an id is there already, or comes twice.
    """
    staged: list[bytes] = []
    batch = _batch(records)
    try:
        while batch:
            following = _batch(records)
            if not following and not staged:
                return len(vault.add(batch))
            staged += vault.add(batch, "staged")
            batch = following
        vault.set_state(staged, "live")
    except BaseException:
        vault.delete(staged)
        raise
    return len(staged)


def add_pieces(
    vault: Vault,
    documents: Iterable[Document],
    preparer: Preparer,
    fate: str,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Add those of the documents that are not there yet, each piece for itself; how many.

    Raises:
        InputError: an id is there with other words or other data; the pieces before it stay.
    """
    stream, added, seen = iter(documents), 0, 0
    while piece := list(islice(stream, _PIECE)):
        handles = [vault.mark("id", document.id) for document in piece]
        there = vault.find_many(handles)
        new: dict[bytes, Document] = {}
        for handle, document in zip(handles, piece, strict=True):
            if handle in there:
                known = vault.read(there[handle], "body") == pack_body(document)
            else:
                known = new.setdefault(handle, document) == document
            if not known:
                raise InputError(
                    f"a document with the id {document.id!r} is there with other words or data.",
                    "Update it, or give this one another id.",
                )
        if new:
            vault.add([preparer.record(document, fate) for document in new.values()])
        added, seen = added + len(new), seen + len(piece)
        if progress is not None:
            progress(seen)
    return added


def _batch(records: Iterator[NewRecord]) -> list[NewRecord]:
    """The next records up to `_BATCH_BYTES`."""
    batch, size = [], 0
    for record in records:
        batch.append(record)
        size += sum(map(len, record.parts.values()))
        if size >= _BATCH_BYTES:
            break
    return batch
