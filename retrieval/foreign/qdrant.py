"""Qdrant's local mode (`QdrantClient(path=...)`): one SQLite file of pickled points a collection.

Deleted points may stay in the free space of that file. Whether they do depends on the SQLite that
Python was built with: Debian's erases (secure_delete), others do not. Vectors are floats in a pickle.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.foreign import carve, pickles
from llm_unlearn.retrieval.foreign.contents import Reading, Row, read_json, regular, split_payload
from llm_unlearn.retrieval.foreign.sqlitefile import Foreign, foreign


def read(folder: Path, text_key: str | None = None) -> Reading:
    """What a folder of Qdrant's local mode holds."""
    reading = Reading("qdrant")
    meta = read_json(folder / "meta.json")
    listed = meta.get("collections") if isinstance(meta, dict) else None
    if not isinstance(listed, dict):
        raise InputError(f"{folder / 'meta.json'} lists no collections.", "Is the folder complete?")
    reading.claimed.add(folder / "meta.json")
    places = sorted(
        place for place in (folder / "collection").iterdir() if regular(place / "storage.sqlite")
    )
    for place in sorted(places, key=lambda p: p.name not in listed):  # live ones first
        _collection(folder, place, reading, text_key, live=place.name in listed)
    return reading


def _collection(
    folder: Path, place: Path, reading: Reading, text_key: str | None, *, live: bool
) -> None:
    path = place / "storage.sqlite"
    name = str(path.relative_to(folder))
    reading.claimed |= {
        path,
        path.with_name(path.name + "-wal"),
        path.with_name(path.name + "-shm"),
    }
    vectors: dict[int, list[NDArray[np.float32]]] = {}
    texts = 0
    with foreign(path) as database:
        for key, blob in database.rows("points", "id, point"):
            if not isinstance(blob, bytes) or not isinstance(key, str):
                raise InputError(f"{path} holds a point that is none.", "Is the folder complete?")
            point = pickles.fields(pickles.load(blob, str(path)))
            payload = point.get("payload")
            text, metadata = split_payload(payload if isinstance(payload, dict) else {}, text_key)
            texts += text is not None
            for vector in _vectors(point.get("vector")):
                vectors.setdefault(vector.size, []).append(vector)
            if live:
                reading.add(Row(place.name, _id(key, point.get("id"), path), text, metadata))
        for found in vectors.values():
            if live:
                reading.add_vectors(place.name, np.stack(found))
        if not live:
            count = sum(map(len, vectors.values()))
            reading.left(name, "a collection that is not listed any more", texts, count)
            return
        for text in database.schema:
            reading.live.add_text(text.encode("utf-8", "replace"))
        _carve(database, name, list(vectors), reading)


def _carve(database: Foreign, name: str, dims: list[int], reading: Reading) -> None:
    for file, what, parts in (
        (name, "free space of the database", database.free()),
        (name + "-wal", "write-ahead log", iter([database.log])),
    ):
        reading.left(file, what, *carve.count(parts, dims, reading.live, joined=False))


def _vectors(value: object) -> list[NDArray[np.float32]]:
    """The dense vectors of a point: one, or several by name; sparse and multi-vectors are none."""
    several = value.values() if isinstance(value, Mapping) else [value]
    with np.errstate(all="ignore"):
        return [
            np.array(one, np.float64).astype(np.float32)
            for one in several
            if isinstance(one, list)
            and one
            and all(isinstance(x, float) or (isinstance(x, int) and abs(x) < 1 << 63) for x in one)
        ]


def _id(key: str, found: Any, path: Path) -> str:
    """The id in the point, or else the pickled one that is the row's key."""
    if isinstance(found, (int, str)):
        return str(found)
    try:
        held = pickles.load(base64.b64decode(key, validate=True), str(path))
    except binascii.Error as error:
        raise InputError(f"{path} holds a point without an id.", "Is it complete?") from error
    if isinstance(held, pickles.Made):  # a UUID: its one field
        held = pickles.fields(held).get("int", key)
    return str(held)
