"""Folders of other vector stores: what is in them, and what their deleted rows left behind.

    look(path)    Chroma, FAISS with LangChain's docstore, LanceDB, Qdrant's local mode

Guarantees: the folder is only read: no file is changed, made or removed, and none of another store's
code runs but LanceDB's own reader. Pickles are read as data (`pickles`), SQLite immutable
(`sqlitefile`), links are not followed. What no reader accounts for is searched as raw bytes (`carve`).

Not guaranteed: completeness. A scan that finds nothing has found nothing in these files; blocks of the
disk outside them, backups and snapshots elsewhere are out of its sight. Live rows are held in memory.
"""

from __future__ import annotations

from pathlib import Path

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.retrieval.foreign import carve
from llm_unlearn.retrieval.foreign.contents import (
    Collection,
    Contents,
    Leftover,
    Reading,
    Row,
    regular,
    regular_files,
)

__all__ = ["Collection", "Contents", "Leftover", "Row", "look"]

_ALWAYS = (
    "blocks of the disk that these files have given up, backups and snapshots elsewhere",
    "what is compressed, encrypted or shorter than 48 bytes",
)


def look(path: Path, text_key: str | None = None) -> Contents:
    """What a folder of another vector store holds.

    Args:
        text_key: the field with a row's text, if it is not where its kind usually keeps it.

    Raises:
        NotFound: there is no such folder.
        InputError: it is no folder of a known kind, or a file in it is not what it should be.
        Damaged: a file in it cannot be read.
        EnvironmentFailure: the package that reads this kind is not installed.
    """
    if not path.exists():
        raise NotFound(f"There is nothing at {path}.", "Give the folder of the other store.")
    if not path.is_dir():
        raise InputError(f"{path} is not a folder.", "Give the folder that it lies in.")
    reading = _read(path, text_key)
    files = list(regular_files(path))
    _carve_rest(path, files, reading)
    return Contents(
        kind=reading.kind,
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
        collections=reading.collections(),
        rows=tuple(reading.rows),
        leftovers=tuple(reading.leftovers),
        unseen=tuple(dict.fromkeys([*reading.unseen, *_ALWAYS])),
    )


def _read(path: Path, text_key: str | None) -> Reading:
    if regular(path / "chroma.sqlite3"):
        from llm_unlearn.retrieval.foreign import chroma

        return chroma.read(path, text_key)
    if regular(path / "meta.json") and (path / "collection").is_dir():
        from llm_unlearn.retrieval.foreign import qdrant

        return qdrant.read(path, text_key)
    if path.suffix == ".lance" or any(path.glob("*.lance")):
        from llm_unlearn.retrieval.foreign import lance

        return lance.read(path, text_key)
    if any(path.glob("*.faiss")):
        from llm_unlearn.retrieval.foreign import langchain

        return langchain.read(path, text_key)
    if regular(path / "edge_config.json"):
        raise InputError(
            f"{path} is a qdrant-edge shard, which only its own library can read.",
            "Its deleted rows stay in its payload pages, vectors and log: export, import, destroy.",
        )
    raise InputError(
        f"{path} is no folder of a store that is known here.",
        "Known: Chroma (chroma.sqlite3), LangChain FAISS (*.faiss and *.pkl), LanceDB (*.lance), "
        "Qdrant's local mode (meta.json and collection/).",
    )


def _carve_rest(folder: Path, files: list[Path], reading: Reading) -> None:
    """Whatever the reader has not accounted for, as raw bytes."""
    for file in files:
        if file in reading.claimed:
            continue
        dims = set(reading.dims.values())
        found = carve.count([file.read_bytes()], dims, reading.live, joined=reading.joined)
        reading.left(str(file.relative_to(folder)), "raw bytes that no live row has", *found)
