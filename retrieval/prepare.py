"""From a document to what the vault keeps of it: chunks, vectors, packed parts.

Guarantees: the parts are a pure function of document, embedder and chunk settings; so one document
is embedded per call, whatever comes before or after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from llm_unlearn.documents import Document, normalise
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval import embedding, parts
from llm_unlearn.retrieval.chunking import Chunker
from llm_unlearn.retrieval.embedding import Embedder, Floats
from llm_unlearn.retrieval.settings import StoreSettings
from llm_unlearn.retrieval.vault import NewRecord

Span = tuple[int, int]


class Preparer:
    """Prepares documents with one embedder and one way of chunking."""

    def __init__(self, embedder: Embedder, settings: StoreSettings) -> None:
        self._embedder = embedder
        self._settings = settings
        self._chunker: Chunker | None = None

    def parts(self, document: Document, rule: str = "", reason: str = "") -> dict[str, bytes]:
        """The parts `meta`, `body` and `vectors`; raises `InputError` for a broken embedder."""
        if self._chunker is None:
            self._chunker = Chunker(
                self._embedder.tokenizer, self._settings.chunk_tokens, self._settings.chunk_overlap
            )
        text = document.content
        spans = self._chunker.spans(text)
        vectors = embedding.encode(self._embedder, [text[start:end] for start, end in spans])
        return _pack(document, spans, vectors, rule, reason)

    def record(self, document: Document, fate: str) -> NewRecord:
        """The document as a new record of generation 0."""
        return _as_record(document, fate, self.parts(document))

    def ready(
        self, document: Document, spans: Sequence[Span], vectors: Floats, fate: str
    ) -> NewRecord:
        """A document with its chunks and unit vectors as a new record of generation 0.

        Raises:
            InputError: the vectors are not unit rows of the embedder's length, one for each span,
                or a span lies outside the text.
        """
        shape, length = (len(spans), self._embedder.dim), len(document.content)
        if vectors.shape != shape or vectors.dtype != np.float32:
            raise InputError(
                f"the vectors of {document.id!r} are {vectors.dtype} of shape {vectors.shape}.",
                f"Give float32 of shape {shape}.",
            )
        if not all(0 <= start < end <= length for start, end in spans):
            raise InputError(f"a span of {document.id!r} lies outside its {length} characters.")
        embedding.check_units(vectors)
        return _as_record(document, fate, _pack(document, spans, vectors, "", ""))

    def recipe(self) -> bytes:
        """A digest (32 bytes) of what decides the parts besides the document."""
        recipe = {
            "chunk_tokens": self._settings.chunk_tokens,
            "chunk_overlap": self._settings.chunk_overlap,
            "dim": self._embedder.dim,
            "embedder": self._embedder.digest,
        }
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).digest()


def _as_record(document: Document, fate: str, packed: dict[str, bytes]) -> NewRecord:
    """A document and its packed parts as a new record of generation 0."""
    return NewRecord(
        id=document.id,
        subject=document.subject,
        source=document.source,
        content=normalise(document.content),
        fate=fate,
        generation=0,
        parts=packed,
    )


def _pack(
    document: Document, spans: Sequence[Span], vectors: Floats, rule: str, reason: str
) -> dict[str, bytes]:
    return {
        "meta": parts.pack_meta(document, rule, reason),
        "body": parts.pack_body(document),
        "vectors": parts.pack_vectors(spans, vectors),
    }
