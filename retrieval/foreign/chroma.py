"""Chroma (PersistentClient): `chroma.sqlite3` and a folder with an HNSW graph for each collection.

Deleted rows stay in three places: the queue of past writes (`embeddings_queue`), the free space of
the database, and the graph, where a vector keeps its place with a mark or without even that.

Not guaranteed: trigrams of deleted texts in the full-text index are not looked for.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.retrieval.foreign import carve, pickles
from llm_unlearn.retrieval.foreign.contents import Reading, Row, regular
from llm_unlearn.retrieval.foreign.sqlitefile import Foreign, foreign

_TEXT = "chroma:document"
_HEADER = struct.Struct(
    "<i6Qii3Qd"
)  # hnswlib's header as Chroma writes it, but for its last number
_DELETE = 3
_WITH_DEAD = (
    "embeddings_queue",
    "embedding_metadata",
    "embedding_metadata_array",
    "embedding_fulltext_search_content",
)

_Key = tuple[str, str]  # collection id, row id


class _Live:
    """The live rows: metadata, text and, when the queue has it, the latest vector."""

    def __init__(self) -> None:
        self.metadata: dict[_Key, dict[str, object]] = {}
        self.vectors: dict[_Key, bytes] = {}

    def text(self, key: _Key) -> object:
        return self.metadata.get(key, {}).get(_TEXT)


def read(folder: Path, text_key: str | None = None) -> Reading:
    """What a Chroma folder holds. Texts are Chroma's documents, or the metadata field `text_key`."""
    path = folder / "chroma.sqlite3"
    reading = Reading("chroma")
    reading.claimed |= {
        path,
        path.with_name(path.name + "-wal"),
        path.with_name(path.name + "-shm"),
    }
    reading.unseen.append("trigrams of deleted texts in the full-text index")
    with foreign(path) as database:
        names = {
            str(i): (str(n), d) for i, n, d in database.rows("collections", "id, name, dimension")
        }
        live, orphans = _live_rows(database, names)
        queued = _replay(database, live, names)
        graphs = _graphs(database, folder, names, live, reading)
        for key in sorted(live.metadata):
            _add(reading, names[key[0]][0], key[1], live.metadata[key], text_key)
        _add_queue_vectors(live, names, graphs, reading)
        reading.left(path.name, "rows of collections that are gone", orphans, 0)
        reading.left(path.name, "queue of past writes (embeddings_queue)", *queued)
        # not the tables that keep deleted texts: those of live rows are known by now
        for text in database.texts(but=_WITH_DEAD):
            reading.live.add_text(text.encode("utf-8", "replace"))
        _carve(database, [d for _, d in names.values() if isinstance(d, int)], reading)
    return reading


def _add(
    reading: Reading, collection: str, name: str, fields: dict[str, object], text_key: str | None
) -> None:
    metadata = dict(fields)
    text = metadata.pop(_TEXT, None)
    if text_key is not None:
        text = metadata.pop(text_key, None)
    kept = text if isinstance(text, str) and text.strip() else None
    reading.add(Row(collection, name, kept, metadata))


def _live_rows(database: Foreign, names: dict[str, tuple[str, object]]) -> tuple[_Live, int]:
    """Rows of the metadata segments; texts in those of segments or collections that are gone."""
    live, orphans = _Live(), 0
    owners = {str(i): str(c) for i, c in database.rows("segments", "id, collection")}
    keys: dict[object, _Key] = {}
    for number, segment, name in database.rows("embeddings", "id, segment_id, embedding_id"):
        collection = owners.get(str(segment))
        if collection in names:
            keys[number] = key = (str(collection), str(name))
            live.metadata[key] = {}
    columns = "id, key, string_value, int_value, float_value, bool_value"
    for table in ("embedding_metadata", "embedding_metadata_array"):
        for number, field, *values in database.rows(table, columns):
            value = next((value for value in values if value is not None), None)
            if number not in keys:
                orphans += field == _TEXT
            elif table == "embedding_metadata":
                live.metadata[keys[number]][str(field)] = value
            else:
                held = live.metadata[keys[number]].setdefault(str(field), [])
                if isinstance(held, list):
                    held.append(value)
    return live, orphans


def _replay(
    database: Foreign, live: _Live, names: dict[str, tuple[str, object]]
) -> tuple[int, int]:
    """Apply what the queue has and the tables have not yet; count its dead texts and vectors."""
    done = {str(s): n for s, n in database.rows("max_seq_id", "segment_id, seq_id")}
    reached: dict[str, int] = {}
    for segment, collection, scope in database.rows("segments", "id, collection, scope"):
        number = done.get(str(segment))
        if scope == "METADATA" and isinstance(number, int):
            reached[str(collection)] = number
    texts: list[tuple[_Key, str]] = []
    vectors: list[tuple[_Key, bytes]] = []
    columns = "seq_id, operation, topic, id, vector, metadata"
    for number, operation, topic, name, vector, metadata in sorted(
        database.rows("embeddings_queue", columns),
        key=lambda row: (isinstance(row[0], int), row[0]),
    ):
        key = (str(topic).rpartition("/")[2], str(name))
        fields = _json(metadata)
        text = fields.get(_TEXT)
        if isinstance(text, str):
            texts.append((key, text))
        if isinstance(vector, bytes):
            vectors.append((key, vector))
        if key[0] not in names:
            continue
        if isinstance(number, int) and number > reached.get(key[0], 0):
            if operation == _DELETE:
                live.metadata.pop(key, None)
            else:
                live.metadata.setdefault(key, {}).update(fields)
        if operation == _DELETE:
            live.vectors.pop(key, None)
        elif isinstance(vector, bytes) and key in live.metadata:
            live.vectors[key] = vector
    dead_texts = {(key, text) for key, text in texts if live.text(key) != text}
    dead_vectors = {(key, raw) for key, raw in vectors if live.vectors.get(key) != raw}
    return len(dead_texts), len(dead_vectors)


def _json(text: object) -> dict[str, object]:
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _floats(raw: bytes) -> NDArray[np.float32]:
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<f4").reshape(1, -1)


def _graphs(
    database: Foreign,
    folder: Path,
    names: dict[str, tuple[str, object]],
    live: _Live,
    reading: Reading,
) -> set[_Key]:
    """The vectors in the HNSW graphs; returns the live rows that have one there."""
    found: set[_Key] = set()
    for segment, collection, scope in database.rows("segments", "id, collection, scope"):
        name, dim = names.get(str(collection), ("", None))
        place = folder / str(segment)
        data, labels = place / "data_level0.bin", place / "index_metadata.pickle"
        if scope != "VECTOR" or "/" in str(segment) or not isinstance(dim, int) or dim < 1:
            continue
        if not regular(data) or not regular(place / "header.bin"):
            continue
        ids = _labels(labels) if regular(labels) else {}
        here, dead, rest = [], 0, b""
        raw = data.read_bytes()
        head = (place / "header.bin").read_bytes()
        if len(head) < _HEADER.size:
            continue
        _, _, _, count, size, label_at, vector_at, *_ = _HEADER.unpack_from(head)
        if size < vector_at + 4 * dim or size < label_at + 8 or count * size > len(raw):
            continue  # not a header that this data has: it is carved whole
        # lengths and links hold one number an element, which are no vectors
        others = ("header.bin", "length.bin", "link_lists.bin")
        reading.claimed |= {data, labels, *(place / other for other in others)}
        for start in range(0, count * size, size):
            (label,) = struct.unpack_from("<Q", raw, start + label_at)
            key = (str(collection), ids.get(label, ""))
            vector = np.frombuffer(raw, "<f4", dim, start + vector_at)
            if raw[start + 2] & 1 or label not in ids or key not in live.metadata:
                dead += 1
            else:
                here.append(vector)
                # a vector that the queue has replaced is live until the graph is written again
                found.add(key)
        if here:
            reading.add_vectors(name, np.stack(here))
        rest = raw[count * size :]
        dead += carve.vectors(rest, [dim], reading.live)
        what = "vectors of deleted rows in the HNSW graph"
        reading.left(str(data.relative_to(folder)), what, 0, dead)
    return found


def _labels(path: Path) -> dict[int, str]:
    """Label in the graph to row id: an object in older versions, a dict in newer ones."""
    held = pickles.load(path.read_bytes(), str(path))
    fields = held if isinstance(held, dict) else pickles.fields(held)
    ids = fields.get("id_to_label")
    if not isinstance(ids, dict):
        return {}
    return {label: name for name, label in ids.items() if isinstance(label, int)}


def _add_queue_vectors(
    live: _Live, names: dict[str, tuple[str, object]], graphs: Iterable[_Key], reading: Reading
) -> None:
    known = set(graphs)
    for key, raw in sorted(live.vectors.items()):
        vectors = _floats(raw)
        if key not in known and vectors.size:
            reading.add_vectors(names[key[0]][0], vectors)


def _carve(database: Foreign, dims: list[int], reading: Reading) -> None:
    for what, parts in (
        ("free space of the database", database.free()),
        ("write-ahead log", iter([database.log])),
    ):
        name = database.path.name + ("-wal" if what == "write-ahead log" else "")
        reading.left(name, what, *carve.count(parts, dims, reading.live, joined=False))
