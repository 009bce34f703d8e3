"""Documents from files: JSONL, CSV, parquet, and folders of plain text.

Guarantees: every file is read twice. The first pass checks every line; unless `skip_broken` is
asked for, one broken line refuses the whole file before anything is yielded. The second pass yields
a document only if it is the one that the first pass saw at that place. Memory holds one document
(parquet: 64 rows) and about 150 bytes for each one read, whatever the size of the file or of a
line. No copy of the text is written to disk. Messages name ids and fields, never a text.

Not guaranteed: that the second pass reaches the end. A file that changes meanwhile raises at the
change, so whoever ingests must be able to take back what came before.
"""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.formats import (
    Found,
    Limits,
    nearest,
    quote,
    read_csv,
    read_folder,
    read_jsonl,
    read_parquet,
    reading,
    show,
    too_long,
)

SHOWN = 20  # broken lines named in one error
KEPT = 1000  # broken lines kept in a report: a large binary file has millions

Unit = Literal["line", "row", "file"]


@dataclass(frozen=True, slots=True)
class Broken:
    """One place that holds no usable document.

    `line` counts from 1: the (first) line of it in a JSONL or CSV file, the row in a parquet file,
    the place in the sorted list of a folder's files. `id` is fit to be shown, and "" where none
    could be read.
    """

    line: int
    id: str
    problem: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a file holds: `total` places, of which `broken_total` hold no usable document.

    `broken` names the first 1000 of those. `unit` says what `Broken.line` counts.
    """

    total: int
    broken_total: int
    broken: list[Broken]
    unit: Unit


_Items = Generator[Document | Broken, None, None]


def scan_documents(path: Path, *, limits: Limits | None = None) -> Report:
    """Check every document of a file or folder; yields none and writes nothing.

    Raises:
        InputError: there is nothing to read, or the file as a whole cannot be read as what its
            extension says it is.
    """
    return _first_pass(path, limits or Limits())[0]


def read_documents(
    path: Path, *, skip_broken: bool = False, limits: Limits | None = None
) -> Iterator[Document]:
    """The documents of a file or folder, checked as a whole by the time this returns.

    `.jsonl` and `.ndjson` hold one object a line with the fields of `Document`. `.csv` has them as
    columns, separated by commas: `tags` and `acl` separated by semicolons, `messages` and
    `metadata` as JSON, an empty cell for none. `.parquet` has them with their own types. In
    a folder each `.txt` and `.md` file is a document whose id is its path in that folder; hidden
    files are passed over.

    Raises:
        InputError: any line is broken (unless `skip_broken`); no line is usable; the file cannot
            be read; or, while the iterator runs, the file changed after it was checked.
    """
    limits = limits or Limits()
    report, marks, before = _first_pass(path, limits)
    if report.broken_total and not skip_broken:
        raise InputError(
            f"{show(path)}: {report.broken_total} of {report.total} documents are broken: "
            + describe(report),
            "Correct them, or pass --skip-broken to take the rest.",
        )
    if report.broken_total == report.total:
        raise InputError(
            f"{show(path)} holds no usable document: " + describe(report),
            "Correct at least one of them.",
        )
    return _second_pass(path, limits, before, marks)


def describe(report: Report) -> str:
    """The broken lines on one line: the first 20, and how many more there are."""
    shown = [
        f"{item.id}: {item.problem}"
        if report.unit == "file"
        else f"{report.unit} {item.line}: {item.problem}"
        for item in report.broken[:SHOWN]
    ]
    more = report.broken_total - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _first_pass(path: Path, limits: Limits) -> tuple[Report, bytes, tuple[int, ...]]:
    unit, items = _open(path, limits)
    before = _fingerprint(path)
    broken: list[Broken] = []
    marks = bytearray()
    broken_total = 0
    with contextlib.closing(items), reading(path):
        for item in items:
            marks += _mark(item)
            if isinstance(item, Broken):
                broken_total += 1
                if len(broken) < KEPT:
                    broken.append(item)
    total = len(marks) // 16
    if not total:
        what = "has no .txt or .md file" if unit == "file" else "is empty: it holds no document"
        raise InputError(f"{show(path)} {what}.", "Give a file with at least one document.")
    return Report(total, broken_total, broken, unit), bytes(marks), before


def _second_pass(
    path: Path, limits: Limits, before: tuple[int, ...], marks: bytes
) -> Iterator[Document]:
    changed = InputError(
        f"{show(path)} changed while it was being read.",
        "Wait until nobody writes to it, and run it again.",
    )
    if _fingerprint(path) != before:
        raise changed
    at = 0
    _, items = _open(path, limits)
    with contextlib.closing(items), reading(path):
        for item in items:
            if _mark(item) != marks[at : at + 16]:
                raise changed
            at += 16
            if isinstance(item, Document):
                yield item
    if at != len(marks) or _fingerprint(path) != before:
        raise changed


def _fingerprint(path: Path) -> tuple[int, ...]:
    with reading(path):
        status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _mark(item: Document | Broken) -> bytes:
    text = item.model_dump_json() if isinstance(item, Document) else repr(item)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _open(path: Path, limits: Limits) -> tuple[Unit, _Items]:
    if str(path) == "-":
        raise InputError(
            "Standard input cannot be ingested: a file is checked whole before it is read again.",
            "Save it to a .jsonl file first, and give that.",
        )
    with reading(path):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "file", _checked(read_folder(path, limits), "file", limits)
    kinds = {
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".csv": read_csv,
        ".parquet": read_parquet,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{show(path)}: the extension {path.suffix!r} is not one that can be read.",
            "Give a .jsonl, .ndjson, .csv or .parquet file, or a folder of .txt and .md files.",
        )
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{show(path)} is not a regular file, and cannot be read twice.",
            "Save what it delivers to a file, and give that.",
        )
    unit: Unit = "row" if kind is read_parquet else "line"
    return unit, _checked(kind(path, limits), unit, limits)


def _checked(found: Iterator[Found], unit: Unit, limits: Limits) -> _Items:
    """Build each document, and catch an id that an earlier one has."""
    seen: dict[bytes, int] = {}
    for place, name, fields in found:
        item = fields if isinstance(fields, str) else _build(fields, limits)
        if isinstance(item, Document):
            name = item.id
            first = seen.setdefault(hashlib.blake2b(name.encode(), digest_size=16).digest(), place)
            if first != place:
                item = f"the id {quote(name)} was already used in {unit} {first}"
        if isinstance(item, str):
            shown = name if name.isprintable() and len(name) <= 80 else quote(name)
            yield Broken(place, shown, item)
        else:
            yield item


def _build(fields: Mapping[str, Any], limits: Limits) -> Document | str:
    """The document, or what is wrong with it, without quoting its text."""
    try:
        document = Document.model_validate(fields)
    except ValidationError as error:
        return _explain(error)
    size = len(document.content.encode())
    if size > limits.max_document_bytes:
        return too_long(f"the text of {size} bytes", limits)
    return document


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=True)[0]
    where = ".".join(str(part) for part in first["loc"])
    field = f"the field {quote(where)}"
    message = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            hint = f": {nearest(where)}" if len(first["loc"]) == 1 else ""
            return f"unknown field {quote(where)}{hint}"
        case "string_type" | "tuple_type":
            wanted = "text" if first["type"] == "string_type" else "a list"
            return f"{field} must be {wanted}, not {type(first['input']).__name__}"
        case "string_too_short":
            return f"{field} is empty"
        case "string_unicode":
            return f"{field} is not valid UTF-8"
        case "string_pattern_mismatch":
            return f"{field} holds a control character or a line break"
        case "value_error":
            return message
        case _:
            return f"{field}: {message[0].lower()}{message[1:]}"
