"""The three parts of a stored document, as bytes: meta, body, vectors.

Guarantees: packing is a pure function of its arguments, and unpacking gives them back or raises
`Damaged`. It does not encrypt: the vault does.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.documents import Document
from llm_unlearn.errors import Damaged

_HEAD = struct.Struct("<4sII")
_MAGIC = b"VEC1"
_FIELDS = {"id", "subject", "source", "license", "tags", "acl", "date", "metadata"}
# Left out when empty, so that documents without them have the bytes they always had.
_OPTIONAL = ("date", "metadata")


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a document besides its text: its fields, and where it went and why."""

    id: str
    subject: str
    source: str
    license: str
    tags: tuple[str, ...]
    acl: tuple[str, ...]
    rule: str
    reason: str
    date: str = ""  # YYYY-MM-DD, empty when there is none
    metadata: Mapping[str, Any] = field(default_factory=dict)


def pack_meta(document: Document, rule: str, reason: str) -> bytes:
    """The part `meta`: JSON with sorted keys."""
    fields = document.model_dump(mode="json", include=_FIELDS - _unset(document))
    return json.dumps({**fields, "rule": rule, "reason": reason}, sort_keys=True).encode()


def unpack_meta(data: bytes) -> Meta:
    """Undo `pack_meta`."""
    try:
        fields = json.loads(data)
        tags, acl = tuple(fields.pop("tags")), tuple(fields.pop("acl"))
        return Meta(**fields, tags=tags, acl=acl)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged("the part 'meta' of a document does not parse.") from error


def pack_body(document: Document) -> bytes:
    """The part `body`: the document as JSON."""
    return document.model_dump_json(exclude=_unset(document)).encode()


def unpack_body(data: bytes) -> Document:
    """Undo `pack_body`."""
    try:
        return Document.model_validate_json(data)
    except ValueError as error:
        raise Damaged("the part 'body' of a document does not parse.") from error


def content_of(body: bytes) -> str:
    """The `content` of the document in a body that has been authenticated, without checking it."""
    try:
        fields = json.loads(body)
        if fields["text"] is not None:
            return str(fields["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged("the part 'body' of a document does not parse.") from error
    return unpack_body(body).content


def _unset(document: Document) -> set[str]:
    return {name for name in _OPTIONAL if not getattr(document, name)}


def pack_vectors(spans: Sequence[tuple[int, int]], vectors: NDArray[np.float32]) -> bytes:
    """The part `vectors`: magic, n, dim, spans (n, 2) uint32, vectors (n, dim) float32."""
    n, dim = vectors.shape
    offsets = np.asarray(spans, dtype="<u4").reshape(n, 2)
    return _HEAD.pack(_MAGIC, n, dim) + offsets.tobytes() + vectors.astype("<f4").tobytes()


def unpack_vectors(data: bytes) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Undo `pack_vectors`: spans (n, 2) and vectors (n, dim)."""
    if len(data) < _HEAD.size:
        raise Damaged("the part 'vectors' of a document is too short.")
    magic, n, dim = _HEAD.unpack_from(data)
    if magic != _MAGIC or len(data) != _HEAD.size + n * (8 + 4 * dim):
        raise Damaged("the part 'vectors' of a document does not parse.")
    spans = np.frombuffer(data, "<u4", 2 * n, _HEAD.size).reshape(n, 2)
    vectors = np.frombuffer(data, "<f4", n * dim, _HEAD.size + 8 * n).reshape(n, dim)
    return spans, vectors
