"""What the adapters share: embedders from outside, documents made of others', one answer a document.

Guarantees: a document that could not come back as it went in is refused; every answer is cut to what
the groups may see, also by a second look when its text is read. It does not know any framework.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval import Hit, Store, parts
from llm_unlearn.retrieval.embedding import Floats

FIELDS = ("subject", "source", "license", "acl")
_MOST = 1000  # chunks of one search
_ALL = ("live", "fenced", "held")


class OutsideEmbedder:
    """A function from texts to vectors as the store's `Embedder`.

    Args:
        embed: what turns texts into vectors, of any length but zero.
        digest: what decides the bits of the vectors.
        tokenizer: counts the tokens of a chunk; default words and punctuation marks.
    """

    def __init__(
        self,
        embed: Callable[[list[str]], Sequence[Sequence[float]]],
        digest: str,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if not digest:
            raise InputError("the digest is empty.", "Name the embedding model and its revision.")
        self._embed = embed
        self.digest = digest
        self.dim = len(embed(["dimension"])[0])
        self.tokenizer = tokenizer or _words()

    def encode(self, texts: Sequence[str]) -> Floats:
        """Texts (n) to unit rows (n, dim) float32."""
        return units(self._embed(list(texts)))


def units(vectors: Sequence[Sequence[float]]) -> Floats:
    """Rows (n, dim) at length 1, float32; raises `InputError`."""
    wide = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.all(np.isfinite(wide)) or not np.all(norms > 0):
        raise InputError("the embeddings hold a vector of length 0 or a number that is not finite.")
    return np.asarray(wide / norms, np.float32)


def as_document(
    name: str,
    text: str,
    given: Mapping[Any, Any],
    metadata: Mapping[Any, Any],
    fields: Collection[str],
) -> Document:
    """A document of the store.

    Args:
        name: its id.
        text: its text.
        given: where the store's own fields are looked for.
        metadata: what is kept beside the text.
        fields: which of the store's own fields.

    Raises:
        InputError: it could not be kept, or would not come back as given.
    """
    own = {key: value for key, value in given.items() if key in fields}
    if isinstance(own.get("acl"), str):
        own["acl"] = [own["acl"]]
    try:
        made = Document(id=name, text=text, metadata=dict(metadata), **own)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"the document {name!r} cannot be kept: {where} {first['msg']}.", "Change it."
        ) from error
    if made.id != name or made.metadata != metadata:
        raise InputError(
            f"the id or metadata of {name!r} would not come back as given.",
            "Leave out blanks around names, and values that are not JSON.",
        )
    return made


def put(store: Store, items: Sequence[tuple[Document, Floats | None]]) -> None:
    """Add documents, each with the unit vector (dim,) of its whole text or None, or replace them.

    The new ones are added all or none; each replacement is all or nothing by itself.

    Raises:
        InputError: an id comes twice, or a vector does not fit the store.
        AccessDenied: a document to be replaced is under a legal hold.
    """
    vault = store.vault
    new: list[tuple[Document, Floats | None]] = []
    old: list[tuple[Document, Floats | None]] = []
    for item in items:
        (old if vault.find(vault.mark("id", item[0].id)) else new).append(item)
    if all(vector is None for _, vector in new):
        store.add(document for document, _ in new)
    else:
        store.add_ready((document, *_ready(store, document, vector)) for document, vector in new)
    for document, vector in old:
        store.update(document, None if vector is None else _ready(store, document, vector))


def _ready(
    store: Store, document: Document, vector: Floats | None
) -> tuple[Sequence[tuple[int, int]], Floats]:
    if vector is not None:
        return [(0, len(document.content))], vector[np.newaxis]
    spans, vectors = parts.unpack_vectors(store.prepare(document)["vectors"])
    return [(int(start), int(end)) for start, end in spans], vectors.astype(np.float32)


def whole(
    store: Store, find: Callable[[int], list[Hit]], k: int, groups: Collection[str]
) -> list[tuple[Document, float]]:
    """The first `k` different documents of a ranking of chunks, each with its best chunk's score.

    Args:
        store: where they are.
        find: the so many best chunks.
        k: how many documents.
        groups: who asks.
    """
    chunks = k
    while True:
        hits = find(chunks)
        scores: dict[str, float] = {}
        for hit in hits:
            scores.setdefault(hit.document, hit.score)
        if len(scores) >= k or len(hits) < chunks or chunks >= _MOST:
            break
        chunks = min(4 * chunks, _MOST)
    chosen = list(scores)[:k]
    # One that is deleted between the search and this is left out, as it must be.
    return [(d, scores[d.id]) for d in store.get(chosen, groups=groups)]


def everything(store: Store) -> list[parts.Meta]:
    """What is known of every document, whether it answers or not: for deletions."""
    vault = store.vault
    records = vault.records(fate=store.fate, states=_ALL)
    return [parts.unpack_meta(m) for m in vault.read_live(records, "meta") if m is not None]


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
