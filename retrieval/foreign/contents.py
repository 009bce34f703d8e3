"""What a folder of another vector store holds: its live rows, and what its deleted rows left.

Guarantees: plain values; a `Contents` repeats no text of a deleted row, only where how many are.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.foreign.carve import Live

# where other programs keep the text of a row, the likeliest first
TEXT_KEYS = ("page_content", "text", "document", "content", "chunk", "body")


@dataclass(frozen=True, slots=True)
class Row:
    """One live row: a chunk of text, or only a vector when `text` is None."""

    collection: str
    id: str
    text: str | None
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection, table or index: live rows, how many have a text, vectors, metadata keys."""

    name: str
    rows: int
    texts: int
    vectors: int
    dim: int | None
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is still in one file though no live row has it: texts (or passages) and vectors."""

    file: str
    what: str
    texts: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A folder of another store. `unseen` says what this scan cannot see in it."""

    kind: str
    files: int
    bytes: int
    collections: tuple[Collection, ...]
    rows: tuple[Row, ...]
    leftovers: tuple[Leftover, ...]
    unseen: tuple[str, ...]

    @property
    def texts_left(self) -> int:
        """Texts and passages of deleted rows, summed over the files: a copy counts again."""
        return sum(left.texts for left in self.leftovers)

    @property
    def vectors_left(self) -> int:
        """Vectors of deleted rows, summed over the files."""
        return sum(left.vectors for left in self.leftovers)


@dataclass
class Reading:
    """What a format's reader finds, piece by piece.

    `claimed` are the files that the reader has accounted for; all others are carved whole.
    """

    kind: str
    rows: list[Row] = field(default_factory=list)
    vectors: dict[str, int] = field(default_factory=dict)  # by collection
    dims: dict[str, int] = field(default_factory=dict)
    leftovers: list[Leftover] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    claimed: set[Path] = field(default_factory=set)
    joined: bool = False  # whether its files hold values with nothing between them
    live: Live = field(default_factory=Live)

    def add(self, row: Row) -> None:
        """A live row."""
        self.rows.append(row)
        if row.text is not None:
            self.live.add_text(row.text.encode("utf-8", "replace"))

    def add_vectors(self, collection: str, vectors: NDArray[np.float32]) -> None:
        """Live vectors (n, dim)."""
        self.vectors[collection] = self.vectors.get(collection, 0) + len(vectors)
        if vectors.size:
            self.dims[collection] = vectors.shape[1]
        self.live.add_vectors(vectors)

    def left(self, file: str, what: str, texts: int, vectors: int) -> None:
        """Something of deleted rows; nothing is not recorded."""
        if texts or vectors:
            self.leftovers.append(Leftover(file, what, texts, vectors))

    def collections(self) -> tuple[Collection, ...]:
        """The live rows summed up by collection."""
        names = sorted({row.collection for row in self.rows} | self.vectors.keys())
        made = []
        for name in names:
            rows = [row for row in self.rows if row.collection == name]
            keys = sorted({key for row in rows for key in row.metadata})
            made.append(
                Collection(
                    name=name,
                    rows=len(rows),
                    texts=sum(row.text is not None for row in rows),
                    vectors=self.vectors.get(name, 0),
                    dim=self.dims.get(name),
                    keys=tuple(keys),
                )
            )
        return tuple(made)


def regular_files(folder: Path) -> Iterator[Path]:
    """Every regular file below a folder, in order; links, pipes and sockets are passed over."""
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def regular(path: Path) -> bool:
    """Whether a path is a regular file and no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def split_payload(
    payload: Mapping[str, object], text_key: str | None
) -> tuple[str | None, dict[str, object]]:
    """Text and metadata of a row that keeps both in one mapping.

    The text stands under `text_key`, or else under the first of `TEXT_KEYS` that holds one, or in
    LlamaIndex's `_node_content`. A mapping under `metadata` is merged into the rest.
    """
    rest = {str(key): value for key, value in payload.items()}
    text: str | None = None
    for key in (text_key,) if text_key else TEXT_KEYS:
        value = rest.get(key)
        if isinstance(value, str) and value.strip():
            text = value
            del rest[key]
            break
    node = rest.pop("_node_content", None)
    if text is None and text_key is None and isinstance(node, str):
        try:
            held = json.loads(node)
        except (ValueError, RecursionError):
            held = None
        if isinstance(held, dict) and isinstance(held.get("text"), str) and held["text"].strip():
            text = held["text"]
    nested = rest.get("metadata")
    if isinstance(nested, Mapping):
        del rest["metadata"]
        rest = {**{str(key): value for key, value in nested.items()}, **rest}
    return text, rest


def read_json(path: Path) -> object:
    """A small JSON file.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON.", "Is the folder complete?") from error
