"""The stores under measurement, each behind the same few calls, written for durable deletion.

Guarantees: `load` and `delete` return when the store's own durable form is on disk. It does not
tune a peer beyond that: each one runs with the settings that its own documentation gives.
"""
# ruff: noqa: D102  (what each method does is said once, in `Peer`)

from __future__ import annotations

import importlib
import importlib.util
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from tokenizers import Tokenizer, models

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.files import sync_directory, write_atomic
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.retrieval.settings import StoreSettings
from llm_unlearn.retrieval.store import Store

CHUNKS = 10  # of each document
SUBJECT = 100  # documents of each subject
WIDTH = 64  # characters of a chunk
K = 10


class Peer(Protocol):
    """A store under measurement. Rows are numbered; document i has rows 10 i to 10 i + 9."""

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        """Take everything, durably; texts (n / 10), vectors (n, dim)."""

    def delete(self, documents: Sequence[int]) -> None:
        """Delete documents, durably."""

    def search(self, query: Floats) -> list[int]:
        """The rows of the ten nearest chunks."""

    def close(self) -> None:
        """Close the files."""


Make = Callable[[Path, int], Peer]  # from a folder and the length of a vector


class Given:
    """Stands where an embedder must, since the vectors are given."""

    digest = "given"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.tokenizer = Tokenizer(models.BPE())

    def encode(self, texts: Sequence[str]) -> Floats:
        """Refuse."""
        raise InputError(f"there is no model to embed {len(texts)} texts with.")


class Ours:
    """The store of this package; a subject has `SUBJECT` documents."""

    def __init__(self, folder: Path, dim: int, settings: StoreSettings) -> None:
        self.folder = folder
        self.store = Store.create(folder / "store", folder / "keys", Given(dim), settings)

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        spans = [(i * WIDTH, (i + 1) * WIDTH) for i in range(CHUNKS)]
        self.store.add_ready(
            (
                Document(id=str(i), text=text, subject=f"subject {i // SUBJECT}"),
                spans,
                vectors[i * CHUNKS : (i + 1) * CHUNKS],
            )
            for i, text in enumerate(texts)
        )

    def delete(self, documents: Sequence[int]) -> None:
        first = documents[0] if documents else 0
        if list(documents) == list(range(first, first + SUBJECT)) and first % SUBJECT == 0:
            self.store.delete(subject=f"subject {first // SUBJECT}")
            return
        for document in documents:
            self.store.delete(id=str(document))

    def search(self, query: Floats) -> list[int]:
        hits = self.store.search_vector(query, groups=["staff"], k=K)
        return [int(hit.document) * CHUNKS + hit.start // WIDTH for hit in hits]

    def close(self) -> None:
        self.store.close()


class Flat:
    """FAISS Flat, its file replaced after each deletion."""

    def __init__(self, folder: Path, dim: int, index: Any = None) -> None:
        self._path = folder / "flat.index"
        self._index: Any = faiss.IndexIDMap2(index or faiss.IndexFlatIP(dim))

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        self._index.add_with_ids(vectors, np.arange(len(vectors)))
        self._write()

    def delete(self, documents: Sequence[int]) -> None:
        self._index.remove_ids(np.array([row for d in documents for row in rows_of(d)]))
        self._write()

    def search(self, query: Floats) -> list[int]:
        rows: list[int] = self._index.search(query[None, :], K)[1][0].tolist()
        return rows

    def close(self) -> None:
        sync_directory(self._path.parent)

    def _write(self) -> None:
        write_atomic(self._path, faiss.serialize_index(self._index).tobytes())


class Flat16(Flat):
    """The same in half precision."""

    def __init__(self, folder: Path, dim: int) -> None:
        half = faiss.ScalarQuantizer.QT_fp16
        super().__init__(
            folder, dim, faiss.IndexScalarQuantizer(dim, half, faiss.METRIC_INNER_PRODUCT)
        )


class SqliteVec:
    """sqlite-vec with `secure_delete`, its log truncated after each deletion."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._db = _sqlite_with_extensions().connect(str(folder / "vec.db"), isolation_level=None)
        self._db.enable_load_extension(True)
        importlib.import_module("sqlite_vec").load(self._db)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE texts (document INTEGER PRIMARY KEY, text TEXT)")
        self._db.execute(f"CREATE VIRTUAL TABLE rows USING vec0(vector float[{dim}])")

    def load(self, texts: Sequence[str], vectors: Floats) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO texts VALUES (?,?)", enumerate(texts))
        rows = ((i, vector.tobytes()) for i, vector in enumerate(vectors))
        self._db.executemany("INSERT INTO rows(rowid, vector) VALUES (?,?)", rows)
        self._commit()

    def delete(self, documents: Sequence[int]) -> None:
        rows = [(row,) for document in documents for row in rows_of(document)]
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM texts WHERE document=?", [(d,) for d in documents])
        self._db.executemany("DELETE FROM rows WHERE rowid=?", rows)
        self._commit()

    def search(self, query: Floats) -> list[int]:
        question = "SELECT rowid FROM rows WHERE vector MATCH ? AND k=?"
        return [row for (row,) in self._db.execute(question, (query.tobytes(), K))]

    def close(self) -> None:
        self._db.close()

    def _commit(self) -> None:
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def rows_of(document: int) -> range:
    """The rows of a document's chunks."""
    return range(document * CHUNKS, (document + 1) * CHUNKS)


def has_sqlite_vec() -> bool:
    """Whether it is there, with a SQLite that loads extensions."""
    found = importlib.util.find_spec("sqlite_vec") is not None
    return found and _sqlite_with_extensions() is not None


def _sqlite_with_extensions() -> Any:
    """A SQLite module that can load extensions; many builds of Python cannot. None without one."""
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    found = importlib.util.find_spec("pysqlite3")
    return importlib.import_module("pysqlite3.dbapi2") if found else None
