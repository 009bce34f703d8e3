"""Rows of another store as documents.

Guarantees: the same rows give the same documents, in the same order, with the same ids, so that
bringing a folder in twice is doing it once; nothing of a deleted row is in them. Chunks of one
document become one document, in the order of their position, or else of their ids. Chunks that
differ in access groups, subject or licence are not merged but refused: nobody is shown more than before.

How metadata is read, the first key that a row has:

    document   doc_id, document_id, ref_doc_id, file_path, source (`group` overrides)
    subject    subject (`subject_key` overrides)
    source     source, url, file_path, file_name
    license    license, licence
    tags       tags: a list, or text separated by commas or semicolons
    acl        acl, groups, access (`acl_key` overrides): the same
    position   chunk_index, chunk, start_index, seq, page

Not guaranteed: that chunks were cut without overlap; what overlaps stands twice. Metadata under other keys
is not brought in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.foreign.contents import Contents, Row

DOCUMENT_KEYS = ("doc_id", "document_id", "ref_doc_id", "file_path", "source")
SUBJECT_KEYS = ("subject",)
SOURCE_KEYS = ("source", "url", "file_path", "file_name")
LICENSE_KEYS = ("license", "licence")
TAG_KEYS = ("tags",)
ACL_KEYS = ("acl", "groups", "access")
POSITION_KEYS = ("chunk_index", "chunk", "start_index", "seq", "page")

_LARGEST = 2 << 20  # bytes of one document, as for files


@dataclass(frozen=True, slots=True)
class Keys:
    """What to read from where; None for the keys that the module names, no key for none."""

    group: str | None = None
    subject_key: str | None = None
    acl_key: str | None = None
    each: bool = False  # every row a document of its own


@dataclass(frozen=True, slots=True)
class Drawn:
    """Documents ready to be ingested, and how many rows have no text and so are none."""

    documents: tuple[Document, ...]
    rows: int
    textless: int
    refused: tuple[str, ...] = field(default=())  # problems, each with the name of its document


def draw(contents: Contents, mapping: Keys, collections: Sequence[str] = ()) -> Drawn:
    """The live rows of a folder as documents.

    Args:
        collections: only these; all if empty.

    Raises:
        InputError: there is no such collection, or no row has a text.
    """
    known = {collection.name for collection in contents.collections}
    missing = sorted(set(collections) - known)
    if missing:
        there = ", ".join(sorted(known)) or "none"
        raise InputError(f"There is no collection {missing[0]!r}.", f"There are: {there}.")
    rows = [r for r in contents.rows if not collections or r.collection in collections]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.text is not None:
            groups.setdefault(_name(contents.kind, row, mapping), []).append(row)
    if not groups:
        raise InputError(
            "No row has a text, so there is nothing to bring in.",
            "Name the field that holds it with --text-key.",
        )
    documents, refused = [], []
    for name, chunks in sorted(groups.items()):
        try:
            documents.append(_document(name, chunks, mapping))
        except InputError as error:
            refused.append(f"{name[:120]}: {error.problem}")
    return Drawn(tuple(documents), len(rows), sum(r.text is None for r in rows), tuple(refused))


def _name(kind: str, row: Row, mapping: Keys) -> str:
    """The id of the document that a row belongs to."""
    if not mapping.each:
        keys = (mapping.group,) if mapping.group is not None else DOCUMENT_KEYS
        value = _first(row.metadata, keys)
        if value:
            return f"{kind}:{row.collection}/{value}"
    return f"{kind}:{row.collection}#{row.id}"


def _document(name: str, chunks: list[Row], mapping: Keys) -> Document:
    chunks = sorted(chunks, key=_position)
    found: dict[str, object] = {}
    for field_name, keys in (
        ("subject", _keys(mapping.subject_key, SUBJECT_KEYS)),
        ("license", LICENSE_KEYS),
    ):
        found[field_name] = _agreed({_first(c.metadata, keys) for c in chunks}, field_name)
    acl_keys = _keys(mapping.acl_key, ACL_KEYS)
    acls = {tuple(sorted(set(_labels(c.metadata, acl_keys)))) for c in chunks}
    found["acl"] = _agreed(acls, "access groups")
    tags = {tag for c in chunks for tag in _labels(c.metadata, TAG_KEYS)}
    source = next((s for c in chunks if (s := _first(c.metadata, SOURCE_KEYS))), "")
    text = "\n\n".join(c.text for c in chunks if c.text is not None)
    if len(text.encode("utf-8", "replace")) > _LARGEST:
        raise InputError(f"its {len(chunks)} chunks are over {_LARGEST} bytes together")
    try:
        return Document.model_validate(
            {"id": name, "text": text, "source": source, "tags": tuple(sorted(tags)), **found}
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "text"
        raise InputError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def _agreed(values: set[object] | set[tuple[str, ...]] | set[str], what: str) -> object:
    if len(values) > 1:
        raise InputError(f"its chunks differ in {what}")
    return next(iter(values))


def _keys(given: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    return usual if given is None else (given,)


def _first(metadata: Mapping[str, object], keys: Sequence[str]) -> str:
    for key in keys:
        value = metadata.get(key)
        if (
            isinstance(value, (str, int, float))
            and not isinstance(value, bool)
            and str(value).strip()
        ):
            return str(value).strip()
    return ""


def _labels(metadata: Mapping[str, object], keys: Sequence[str]) -> list[str]:
    """Labels under the first key that is there; what cannot be read as labels is refused.

    To pass over groups that are there but not understood would open a document to everybody.
    """
    for key in keys:
        value = metadata.get(key)
        if value is None:
            continue
        if isinstance(value, str):
            value = re.split(r"[,;]", value)
        if not isinstance(value, (list, tuple, set, frozenset)) or not all(
            isinstance(label, (str, int)) and not isinstance(label, bool) for label in value
        ):
            raise InputError(f"its {key!r} is no list of names")
        return [str(label).strip() for label in value if str(label).strip()]
    return []


def _position(row: Row) -> tuple[float, list[tuple[int, str]], str]:
    """Position if there is one, then the id with its numbers compared as numbers."""
    place = math.inf
    for key in POSITION_KEYS:
        value = row.metadata.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
            place = float(value)
            break
    parts = re.findall(r"\d{1,18}|\D+|\d+", row.id)
    natural = [
        (int(p), "") if p.isascii() and p.isdigit() and len(p) < 19 else (-1, p) for p in parts
    ]
    return place, natural, row.id
