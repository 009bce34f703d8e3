"""The forms in which documents come: JSONL, CSV, parquet, a folder of plain text.

Each reader yields, for every place that should hold a document, its number (from 1), its id where
one can be read, and either the fields or what is wrong. Whether the fields make a document is for
`readers` to say.

Guarantees: no line, record or file is held in memory beyond the limit, and nothing is copied to
disk. CSV is read by the standard library and not by `datasets`, whose pandas reader knows no line
numbers, holds whatever follows an open quote, and shifts the columns without a word when the first
row has a cell too many.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import glob
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError

_FIELDS = tuple(Document.model_fields)
_ROWS = 64  # parquet rows held at once
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"

Found = tuple[int, str, Mapping[str, Any] | str]  # place, id, the fields or what is wrong


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_document_bytes`: the longest JSONL line, text file or rendered document, in bytes."""

    max_document_bytes: int = 2 << 20


def read_jsonl(path: Path, limits: Limits) -> Iterator[Found]:
    """One object a line; blank lines are passed over."""
    with path.open("rb") as file:
        for number, line in _lines(file, limits):
            if line is None:
                yield number, "", too_long("the line", limits)
            elif line.strip():
                fields = _json_object(line)
                name = "" if isinstance(fields, str) else fields.get("id", "")
                yield number, name if isinstance(name, str) else "", fields


def _json_object(line: bytes) -> Mapping[str, Any] | str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    try:
        fields = json.loads(text, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:  # a key given twice; a number of thousands of digits
        return f"not valid JSON: {str(error).splitlines()[0]}"
    if not isinstance(fields, dict):
        return f"not a JSON object but {type(fields).__name__}"
    return fields


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {quote(key)} comes twice")
        fields[key] = value
    return fields


def _lines(file: BinaryIO, limits: Limits) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number; None for one over the limit, which is never held in memory."""
    number = 0
    while line := file.readline(limits.max_document_bytes + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line.rstrip(b"\r\n")) <= limits.max_document_bytes:
            yield number, line
            continue
        while not line.endswith(b"\n") and (line := file.readline(_CHUNK)):
            pass
        yield number, None


def read_csv(path: Path, limits: Limits) -> Iterator[Found]:
    """A header and comma-separated cells; the place is the record's first line."""
    # The csv module's own limit (131072) is global; it is raised, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_document_bytes))
    with path.open("rb") as file:
        lines = _CsvLines(file, path, limits)
        rows = csv.reader(lines, strict=True)
        try:
            header = _columns(next(rows, []), path)
            lines.end_record()
            for row in rows:
                number = lines.end_record()
                if row:
                    fields = _csv_fields(header, row)
                    name = "" if isinstance(fields, str) else fields.get("id", "")
                    yield number, name, fields
        except csv.Error as error:
            raise InputError(
                f"{show(path)}: line {lines.first} is not valid CSV: {error}.",
                "Correct its quotes; what follows cannot be told apart, so nothing was taken.",
            ) from error


class _CsvLines:
    """The lines of a CSV file as text, refusing a record that grows past the limit."""

    def __init__(self, file: BinaryIO, path: Path, limits: Limits) -> None:
        self.first = 1  # the line on which the current record began
        self._lines = _lines(file, limits)
        self._path = path
        self._limits = limits
        self._number = 0
        self._size = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        self._number, line = next(self._lines)
        self._size += len(line or b"")
        if line is None or self._size > 2 * self._limits.max_document_bytes:
            raise InputError(
                f"{show(self._path)}: line {self.first}: {too_long('the record', self._limits)}.",
                "Is a quote left open there? What follows cannot be told apart.",
            )
        # Bytes that are not UTF-8 become lone surrogates, which no document accepts.
        return line.decode(errors="surrogateescape")

    def end_record(self) -> int:
        """The first line of the record just read; the next one begins after it."""
        first, self.first, self._size = self.first, self._number + 1, 0
        return first


def _columns(names: list[str], path: Path) -> list[str]:
    for name in names:
        if name not in _FIELDS:
            raise InputError(
                f"{show(path)}: unknown column {quote(name)}: {nearest(name)}",
                "Rename or drop the column.",
            )
        if names.count(name) > 1:
            raise InputError(f"{show(path)}: the column {name!r} comes twice.", "Drop one.")
    return names


def _csv_fields(header: list[str], row: list[str]) -> Mapping[str, Any] | str:
    if len(row) != len(header):
        return f"{len(row)} cells, but the header has {len(header)}"
    fields: dict[str, Any] = {}
    for name, cell in zip(header, row, strict=True):
        if not cell:
            continue
        fields[name] = cell
        if name in ("tags", "acl"):
            fields[name] = [label for label in cell.split(";") if label.strip()]
        elif name in ("messages", "metadata"):
            try:
                fields[name] = json.loads(cell)
            except (ValueError, RecursionError):
                return f"the cell {name!r} is not valid JSON"
    return fields


def read_parquet(path: Path, limits: Limits) -> Iterator[Found]:
    """One row a document, through `datasets`."""
    # A damaged file makes pyarrow and datasets raise errors of many kinds, from any depth.
    try:
        with _parquet_rows(path) as rows:
            for number, row in enumerate(rows, 1):
                fields = {name: value for name, value in row.items() if value is not None}
                name = fields.get("id", "")
                yield number, name if isinstance(name, str) else "", fields
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"{show(path)} cannot be read as parquet: {reason[0][:120]}.",
            "Write the file again with the program that made it.",
        ) from error


@contextlib.contextmanager
def _parquet_rows(path: Path) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows through `datasets`, streaming; its cache is a directory that goes with the block."""
    import datasets

    if "::" in str(path.absolute()):
        raise InputError(
            f"{show(path)}: '::' in a path stands for a chain of file systems in `datasets`.",
            "Rename the file or its folder.",
        )
    # It logs every failure as well as raising it; the user gets it once, from the caller.
    logger = logging.getLogger("datasets.packaged_modules.parquet.parquet")
    was, logger.disabled = logger.disabled, True
    try:
        with tempfile.TemporaryDirectory(prefix="llm-unlearn-") as cache:
            table = datasets.load_dataset(
                "parquet",
                data_files=glob.escape(str(path.absolute())),
                split="train",
                streaming=True,
                cache_dir=cache,
                batch_size=_ROWS,
            )
            _columns(list(table.features), path)
            # decode(False): a column declared as image or audio must not make it open other files.
            yield iter(table.decode(False))
    finally:
        logger.disabled = was


def read_folder(path: Path, limits: Limits) -> Iterator[Found]:
    """One `.txt` or `.md` file a document, in the order of their paths."""
    for number, name in enumerate(sorted(_walk(path)), 1):
        file = path / name
        shown = show(Path(name))
        if file.is_symlink() or not file.is_file():
            yield number, shown, "not a regular file"
        elif file.suffix.lower() not in (".txt", ".md"):
            yield number, shown, "neither .txt nor .md; move it elsewhere, or hide it with a dot"
        else:
            with file.open("rb") as opened:
                data = opened.read(limits.max_document_bytes + 1).removeprefix(_BOM)
            if len(data) > limits.max_document_bytes:
                yield number, shown, too_long("the file", limits)
                continue
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                yield number, shown, _not_utf8(error)
            else:
                yield number, shown, {"id": name, "text": text}


def _walk(path: Path) -> Iterator[str]:
    """The files below a folder as paths relative to it, with "/"; nothing hidden, no links."""

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(path, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield (Path(parent) / name).relative_to(path).as_posix()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line what the operating system refused."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{show(path)} cannot be read: {error.strerror or error}.",
            "Check the path and who may read it.",
        ) from error


def nearest(name: str) -> str:
    """A hint at the field that was meant."""
    near = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(_FIELDS)


def too_long(what: str, limits: Limits) -> str:
    """The problem of something over the limit."""
    return f"{what} is over the limit of {limits.max_document_bytes} bytes for one document"


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8: byte 0x{byte:02x} at offset {error.start}; is this a binary file?"


def quote(name: str) -> str:
    """A name as it may be shown in a terminal: escaped, and cut at 80 characters."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def show(path: Path) -> str:
    """A path as it may be shown in a terminal."""
    return str(path) if str(path).isprintable() else repr(str(path))
