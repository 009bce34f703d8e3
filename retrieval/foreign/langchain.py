"""LangChain's FAISS: `NAME.faiss` beside `NAME.pkl`, the docstore and where each row stands.

The pickle is read as data. Flat indexes are parsed here, since FAISS itself loads a damaged file
silently or dies of it; of other kinds only the header is read: how many vectors there are.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.retrieval.foreign import pickles
from llm_unlearn.retrieval.foreign.contents import Reading, Row, regular

_HEAD = struct.Struct("<4siqqqBi")  # kind, dim, vectors, two unused, trained, metric
_FLAT = (b"IxF2", b"IxFI", b"IxFl")
_MAPPED = (b"IxMp", b"IxM2")


def read(folder: Path, text_key: str | None = None) -> Reading:
    """What the FAISS indexes of a folder hold. An index without a docstore is vectors only."""
    reading = Reading("faiss")
    for index in sorted(folder.glob("*.faiss")):
        if not regular(index):
            raise InputError(f"{index} is not a file.", "Links are not followed.")
        store = index.with_suffix(".pkl")
        places: dict[int, str] | None = None
        if regular(store):
            places = _docstore(store, index.stem, reading, text_key)
        _vectors(index, places, reading)
    return reading


def _docstore(path: Path, name: str, reading: Reading, text_key: str | None) -> dict[int, str]:
    """The documents, and of each place in the index the id of its document."""
    held = pickles.load(path.read_bytes(), str(path))
    damaged = Damaged(f"{path} is not what LangChain writes.", "Is the folder complete?")
    if not isinstance(held, tuple) or len(held) != 2 or not isinstance(held[1], dict):
        raise damaged
    documents = pickles.fields(held[0]).get("_dict")
    if not isinstance(documents, dict):
        raise damaged
    reading.claimed.add(path)
    places = {at: str(key) for at, key in held[1].items() if isinstance(at, int)}
    wanted, dead = set(places.values()), 0
    for key, document in documents.items():
        fields = pickles.fields(document)
        text, metadata = fields.get("page_content"), fields.get("metadata")
        metadata = {str(k): v for k, v in metadata.items()} if isinstance(metadata, dict) else {}
        if text_key is not None:
            text = metadata.pop(text_key, None)
        kept = text if isinstance(text, str) and text.strip() else None
        if str(key) in wanted:
            reading.add(Row(name, str(key), kept, metadata))
        else:
            dead += kept is not None
    reading.left(path.name, "documents that the index does not have", dead, 0)
    return places


def _vectors(path: Path, places: dict[int, str] | None, reading: Reading) -> None:
    data = path.read_bytes()
    kind, dim, count, vectors = _parse(data, path)
    name = path.stem
    live = {at for at in range(count) if places is None or at in places}
    dead = count - len(live)
    reading.dims[name] = dim
    if vectors is None:
        reading.vectors[name] = len(live)
        reading.unseen.append(f"the vectors themselves in {path.name} ({kind.decode('latin-1')})")
    else:
        reading.claimed.add(path)
        reading.add_vectors(name, vectors[sorted(live)])
    reading.left(path.name, "vectors of rows that the docstore does not have", 0, dead)


def _parse(data: bytes, path: Path) -> tuple[bytes, int, int, NDArray[np.float32] | None]:
    """Kind, dimension, number of vectors and, of a flat index, the vectors (n, dim)."""
    damaged = Damaged(f"{path} is no whole FAISS index.", "Is the folder complete?")
    if len(data) < _HEAD.size:
        raise damaged
    kind, dim, count, _, _, _, metric = _HEAD.unpack_from(data)
    at = _HEAD.size + (4 if metric > 1 else 0)
    if kind[:1] != b"I" or dim < 1 or count < 0 or count * 1 > len(data):
        raise damaged
    outer = count
    if kind in _MAPPED:
        if len(data) < at + _HEAD.size:
            raise damaged
        kind, dim, count, _, _, _, metric = _HEAD.unpack_from(data, at)
        at += _HEAD.size + (4 if metric > 1 else 0)
    if kind not in _FLAT:
        return kind, dim, outer, None
    if len(data) < at + 8 or count != outer or dim < 1:
        raise damaged
    (length,) = struct.unpack_from("<Q", data, at)
    if length != count * dim or len(data) < at + 8 + 4 * length:
        raise damaged
    return kind, dim, count, np.frombuffer(data, "<f4", length, at + 8).reshape(count, dim)
