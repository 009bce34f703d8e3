"""Makes a folder of another vector store with its own library: 100 rows, of which 10 are deleted.

Run as a script, `folders.py KIND FOLDER`, so that the library writes in a process of its own, and
imported for the same texts and vectors.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np

ROWS, DIM = 100, 64
DEAD = tuple(range(3, ROWS, 10))
ALIVE = tuple(i for i in range(ROWS) if i not in DEAD)
VECTORS = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype("<f4")


def text(row: int) -> str:
    """A text whose words no other row has."""
    words = (hashlib.sha256(f"{row} {word}".encode()).hexdigest()[:9] for word in range(20))
    return f"Paragraph {row} says: {' '.join(words)}"


def metadata(row: int) -> dict[str, str | int]:
    """Five rows a file, ten an author."""
    return {"source": f"file-{row // 5}.txt", "page": row % 5, "author": f"author-{row // 10}"}


TEXTS = [text(row) for row in range(ROWS)]
IDS = [f"row-{row}" for row in range(ROWS)]
METADATA = [metadata(row) for row in range(ROWS)]


def chroma(folder: Path, *, small_batches: bool) -> None:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
    settings = {"hnsw": {"sync_threshold": 20, "batch_size": 10, "space": "cosine"}}
    collection = client.create_collection(
        "rows", embedding_function=None, configuration=settings if small_batches else None
    )
    for start in range(0, ROWS, 10):
        part = slice(start, start + 10)
        collection.add(
            ids=IDS[part],
            documents=TEXTS[part],
            embeddings=VECTORS[part],
            metadatas=METADATA[part],
        )
    collection.delete(ids=[IDS[row] for row in DEAD])


def lance(folder: Path) -> None:
    import lancedb

    rows = [
        {"id": IDS[i], "vector": VECTORS[i].tolist(), "text": TEXTS[i], **METADATA[i]}
        for i in range(ROWS)
    ]
    table = lancedb.connect(str(folder)).create_table("rows", data=rows)
    table.delete("id in (" + ", ".join(repr(IDS[row]) for row in DEAD) + ")")


def qdrant(folder: Path) -> None:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("rows", vectors_config=params)
    points = [
        models.PointStruct(
            id=i,
            vector=VECTORS[i].tolist(),
            payload={"page_content": TEXTS[i], "metadata": METADATA[i]},
        )
        for i in range(ROWS)
    ]
    client.upsert("rows", points)
    # some builds of SQLite erase and some do not: here it must not
    storage = client._client.collections["rows"].storage.storage
    storage.execute("PRAGMA secure_delete = OFF")
    client.delete("rows", points_selector=models.PointIdsList(points=list(DEAD)))
    client.close()


class Document:
    """Pickles as langchain_core's Document does (pydantic's state, by name)."""

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    def __getstate__(self) -> dict[str, object]:
        return {
            "__dict__": self._fields,
            "__pydantic_extra__": None,
            "__pydantic_fields_set__": {"page_content", "metadata"},
            "__pydantic_private__": None,
        }


class InMemoryDocstore:
    """Pickles as langchain_community's docstore does."""

    def __init__(self, documents: dict[str, Document]) -> None:
        self._dict = documents


def langchain(folder: Path, *, kind: str = "Flat", orphans: bool = False) -> None:
    """The two files of LangChain's FAISS, under the names its classes have.

    `orphans`: written by a program that dropped the deleted rows from the list of places only.
    """
    import faiss

    names = ("langchain_community.docstore.in_memory", "langchain_core.documents.base")
    for name, made in zip(names, (InMemoryDocstore, Document), strict=True):
        for end in [at for at, letter in enumerate(name) if letter == "."]:
            sys.modules[name[:end]] = types.ModuleType(name[:end])
        module = types.ModuleType(name)
        made.__module__ = name
        setattr(module, made.__name__, made)
        sys.modules[name] = module
    kept = range(ROWS) if orphans else ALIVE
    index = faiss.index_factory(DIM, kind)
    index.add(VECTORS[list(kept)])
    folder.mkdir()
    faiss.write_index(index, str(folder / "index.faiss"))
    documents = {
        IDS[i]: Document(
            {"id": IDS[i], "metadata": METADATA[i], "page_content": TEXTS[i], "type": "Document"}
        )
        for i in kept
    }
    places = {at: IDS[row] for at, row in enumerate(kept) if row in ALIVE}
    data = pickle.dumps((InMemoryDocstore(documents), places), protocol=4)
    (folder / "index.pkl").write_bytes(data)


if __name__ == "__main__":
    kind, place = sys.argv[1], Path(sys.argv[2])
    if kind == "chroma":
        chroma(place, small_batches=False)
    elif kind == "chroma-graph":
        chroma(place, small_batches=True)
    elif kind == "langchain":
        langchain(place)
    elif kind == "langchain-orphans":
        langchain(place, orphans=True)
    elif kind == "langchain-hnsw":
        langchain(place, kind="HNSW16")
    else:
        {"lance": lance, "qdrant": qdrant}[kind](place)
