"""LanceDB: a folder `NAME.lance` a table, with every version that was not cleaned up.

A deletion writes a new version and a list of deleted places: the rows stay in the data files, in
old versions until they are cleaned up, and in the newest version's own files until those are compacted.
Rows are read by LanceDB's own reader (the extra `peers`); its files are then searched as raw bytes.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from llm_unlearn.errors import Damaged, EnvironmentFailure, InputError
from llm_unlearn.retrieval.foreign.contents import Reading, Row, split_payload

_STRINGS = ("string", "large_string", "string_view")
_RECORDS = ("_versions", "_transactions", "_deletions")  # files that hold no rows
_VERSIONS = 50  # read; a table that is added to often has thousands, each as large as the last


def read(folder: Path, text_key: str | None = None) -> Reading:
    """What a LanceDB folder, or one table of it, holds."""
    try:
        import lancedb
    except ImportError as error:
        raise EnvironmentFailure(
            f"{folder} is a LanceDB folder, and the package lancedb is not installed.",
            "Run: pip install 'llm-unlearn[peers]'",
        ) from error
    alone = folder.suffix == ".lance"
    base = folder.parent if alone else folder
    tables = [folder] if alone else sorted(folder.glob("*.lance"))
    reading = Reading("lancedb", joined=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in tables:
            if place.is_symlink() or not place.is_dir():
                raise InputError(f"{place} is not a folder.", "Links are not followed.")
            try:
                table = lancedb.connect(str(base)).open_table(place.stem)
                _table(table, place, folder, reading, text_key)
            except Exception as error:
                raise _damaged(place, error) from error
            except BaseException as error:
                if type(error).__name__ == "PanicException":  # a defect of the reader's Rust code
                    raise _damaged(place, error) from error
                raise
    return reading


def _damaged(place: Path, error: BaseException) -> Damaged:
    problem = " ".join(str(error).split())[:200]
    return Damaged(f"{place} cannot be read: {problem}.", "Is the folder complete?")


def _table(table: Any, place: Path, folder: Path, reading: Reading, text_key: str | None) -> None:
    newest = table.to_arrow()
    for row in _rows(newest, place.stem, text_key):
        reading.add(row)
    for (
        field
    ) in newest.schema:  # values lie end to end, so short ones are known by their neighbours
        values = newest.column(field.name).to_pylist() if str(field.type) in _STRINGS else []
        reading.live.add_text("".join(filter(None, values)).encode("utf-8", "replace"))
    reading.claimed |= {path for kind in _RECORDS for path in (place / kind).glob("*")}
    reading.unseen.append("conditions of deletions in _transactions, which name what was deleted")
    here = {_mark(row) for row in reading.rows if row.collection == place.stem}
    for name in _vector_columns(newest):
        column = newest.column(name).combine_chunks().drop_null()
        dim = newest.schema.field(name).type.list_size
        flat = column.flatten().to_numpy(zero_copy_only=False)
        reading.add_vectors(place.stem, flat.astype(np.float32).reshape(-1, dim))
        reading.dims.setdefault(place.stem, dim)
    versions = sorted(int(v["version"]) for v in table.list_versions())[:-1]
    gone: set[bytes] = set()
    for version in versions[-_VERSIONS:]:
        table.checkout(version)
        gone.update(
            _mark(row)
            for row in _rows(table.to_arrow(), place.stem, text_key)
            if row.text is not None and _mark(row) not in here
        )
    table.checkout_latest()
    if len(versions) > _VERSIONS:
        reading.unseen.append(f"all but the last {_VERSIONS} earlier versions of {place.stem}")
    where = "." if place == folder else place.name
    what = f"rows of {len(versions)} earlier versions that anyone can check out"
    reading.left(f"{where}/_versions", what, len(gone), 0)


def _vector_columns(table: Any) -> list[str]:
    import pyarrow as pa

    return [
        field.name
        for field in table.schema
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]


def _rows(table: Any, name: str, text_key: str | None) -> list[Row]:
    """Live rows. Without an `id` a row is named by a digest of what it holds."""
    vectors = _vector_columns(table)
    made, seen = [], dict[str, int]()
    for fields in table.drop_columns(vectors).to_pylist():
        text, metadata = split_payload(fields, text_key)
        given = fields.get("id")
        if isinstance(given, (str, int)) and str(given).strip():
            key = str(given)
            metadata.pop("id", None)
        else:
            held = repr((text, sorted(metadata.items(), key=lambda item: item[0])))
            key = hashlib.sha256(held.encode("utf-8", "replace")).hexdigest()[:24]
        seen[key] = seen.get(key, 0) + 1
        made.append(Row(name, key if seen[key] == 1 else f"{key}-{seen[key]}", text, metadata))
    return made


def _mark(row: Row) -> bytes:
    return hashlib.sha256(f"{row.id}\0{row.text}".encode("utf-8", "replace")).digest()
