"""What a scan finds in folders that the other libraries made themselves, and that it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.retrieval.foreign import look

KINDS = {
    "chroma": "chroma",
    "chroma-graph": "chroma",
    "lance": "lancedb",
    "qdrant": "qdrant",
    "langchain": "faiss",
    "langchain-orphans": "faiss",
    "langchain-hnsw": "faiss",
}
DEAD = len(folders.DEAD)


def _needles(folder: Path, row: int) -> bool:
    """Whether a row's text stands in any file, looked for without the package."""
    wanted = folders.TEXTS[row].encode()
    return any(wanted in p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_the_live_rows_are_all_there_and_no_deleted_one(made: Any, kind: str) -> None:
    contents = look(made(kind))
    assert contents.kind == KINDS[kind]
    assert {row.text for row in contents.rows} == {folders.TEXTS[i] for i in folders.ALIVE}
    names = {str(i) if kind == "qdrant" else folders.IDS[i] for i in folders.ALIVE}
    assert {row.id for row in contents.rows} == names
    by_text = {row.text: dict(row.metadata) for row in contents.rows}
    assert all(by_text[folders.TEXTS[i]] == folders.METADATA[i] for i in folders.ALIVE)
    (collection,) = contents.collections
    assert (collection.rows, collection.texts, collection.vectors) == (90, 90, 90)
    assert collection.dim == folders.DIM
    assert collection.keys == ("author", "page", "source")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_the_folder_changes(copied: Any, listing: Any, kind: str) -> None:
    folder = copied(kind)
    before = listing(folder)
    look(folder)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("kind", "texts", "vectors"),
    [
        ("chroma", ["queue of past writes", "free space"], ["queue of past writes"]),
        ("chroma-graph", ["free space"], ["HNSW graph"]),
        ("lance", ["earlier versions", "raw bytes"], ["raw bytes"]),
        ("qdrant", ["free space"], []),
        ("langchain-orphans", ["documents that the index"], ["vectors of rows"]),
    ],
)
def test_every_deleted_text_that_is_still_there_is_counted(
    made: Any, kind: str, texts: list[str], vectors: list[str]
) -> None:
    folder = made(kind)
    # langchain's pickle holds the texts as they are too
    assert sum(_needles(folder, row) for row in folders.DEAD) == DEAD
    left = look(folder).leftovers
    for what in texts:
        assert sum(item.texts for item in left if what in item.what) == DEAD, what
    for what in vectors:
        assert sum(item.vectors for item in left if what in item.what) == DEAD, what


def test_vectors_in_the_free_space_of_qdrant_s_file_are_found(made: Any) -> None:
    """SQLite writes over the first bytes of a free block, so a few of ten may be beyond reading."""
    (left,) = (item for item in look(made("qdrant")).leftovers if "free" in item.what)
    assert DEAD - 3 <= left.vectors <= DEAD


@pytest.mark.parametrize("kind", ["chroma", "chroma-graph"])
def test_vectors_in_the_free_space_of_chroma_s_file_are_those_there(made: Any, kind: str) -> None:
    """Also where the graph keeps live vectors at length one and the free space as they came."""
    raw = (made(kind) / "chroma.sqlite3").read_bytes()
    with sqlite3.connect(f"file:{made(kind)}/chroma.sqlite3?immutable=1", uri=True) as database:
        queue = database.execute("SELECT vector FROM embeddings_queue WHERE vector NOT NULL")
        rows = {bytes(vector) for (vector,) in queue}
    database.close()
    wanted = [folders.VECTORS[row].tobytes() for row in folders.DEAD]
    copies = sum(raw.count(needle) - (needle in rows) > 0 for needle in wanted)
    free = sum(item.vectors for item in look(made(kind)).leftovers if "free" in item.what)
    assert copies <= free <= copies + 1  # one whose first bytes were written over, at most


def test_langchain_leaves_nothing_in_its_files(made: Any) -> None:
    folder = made("langchain")
    assert not any(_needles(folder, row) for row in folders.DEAD)
    assert look(folder).leftovers == ()


def test_no_text_of_a_deleted_row_is_in_what_a_scan_returns(made: Any) -> None:
    for kind in KINDS:
        contents = look(made(kind))
        told = repr((contents.leftovers, contents.unseen, contents.collections, contents.rows))
        assert not any(folders.TEXTS[row] in told for row in folders.DEAD)


def test_a_forgotten_copy_in_the_folder_is_found(copied: Any) -> None:
    folder = copied("langchain")
    old = folders.text(3) + " " + folders.text(13)
    (folder / "backup.txt").write_text(old + folders.text(4))
    (folder / "old.bin").write_bytes(b"\1\2\3" + folders.VECTORS[[3, 4, 13]].tobytes())
    left = {item.file: item for item in look(folder).leftovers}
    assert left["backup.txt"].texts >= 1
    assert left["backup.txt"].vectors == 0
    assert (left["old.bin"].texts, left["old.bin"].vectors) == (0, 2)  # row 4 is alive


def test_a_row_that_changed_leaves_its_old_words(copied: Any) -> None:
    """A change the queue has and the tables not yet: what counts is the queue's."""
    folder = copied("chroma")
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        (topic, last) = database.execute(
            "SELECT topic, max(seq_id) FROM embeddings_queue"
        ).fetchone()
        words = {"chroma:document": "Other words that nobody had in this place before today."}
        values = (last + 1, 1, topic, folders.IDS[0], json.dumps(words))
        database.execute(
            "INSERT INTO embeddings_queue (seq_id, operation, topic, id, metadata) "
            "VALUES (?, ?, ?, ?, ?)",
            values,
        )
    contents = look(folder)
    row = next(row for row in contents.rows if row.id == folders.IDS[0])
    assert row.text == words["chroma:document"]
    assert row.metadata["source"] == "file-0.txt"
    queue = next(item for item in contents.leftovers if "queue" in item.what)
    assert queue.texts == DEAD + 1


def test_a_write_ahead_log_is_read_and_not_touched(
    copied: Any, listing: Any, tmp_path: Path
) -> None:
    """Rows that are only in the log are live; the log's own old pages are searched."""
    folder = copied("qdrant")
    path = folder / "collection" / "rows" / "storage.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA secure_delete = OFF")
    gone = writer.execute("SELECT id FROM points ORDER BY rowid LIMIT 1").fetchone()
    writer.execute("DELETE FROM points WHERE id = ?", gone)
    writer.commit()
    with_log = tmp_path / "with-log"
    shutil.copytree(folder, with_log)  # as after a crash: the log was never merged
    writer.close()
    assert (path.parent / "storage.sqlite-wal").exists() is False
    before = listing(with_log)
    contents = look(with_log)
    assert len(contents.rows) == 89
    assert sum(item.texts for item in contents.leftovers if "free" in item.what) == DEAD + 1
    assert listing(with_log) == before


def test_a_collection_that_is_not_listed_is_a_leftover(copied: Any) -> None:
    folder = copied("qdrant")
    (folder / "meta.json").write_text('{"collections": {}}')
    contents = look(folder)
    assert contents.rows == ()
    (left,) = contents.leftovers
    assert (left.texts, left.vectors) == (90, 90)


def test_rows_without_a_text_are_told(copied: Any) -> None:
    contents = look(copied("lance"), text_key="nowhere")
    assert [row.text for row in contents.rows] == [None] * 90
    assert contents.collections[0].texts == 0


def test_one_table_of_a_lancedb_can_be_looked_at(made: Any) -> None:
    assert len(look(made("lance") / "rows.lance").rows) == 90


def test_other_text_fields_of_a_payload(copied: Any) -> None:
    from llm_unlearn.retrieval.foreign.contents import split_payload

    node = json.dumps({"text": "words of a node", "metadata": {}})
    assert split_payload({"_node_content": node, "doc_id": "d"}, None) == (
        "words of a node",
        {"doc_id": "d"},
    )
    assert split_payload({"text": "a", "page_content": "b"}, None) == ("b", {"text": "a"})
    assert split_payload({"text": "a", "mine": "c"}, "mine") == ("c", {"text": "a"})
    assert split_payload({"text": "  ", "n": 1}, None) == (None, {"text": "  ", "n": 1})


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing at"):
        look(tmp_path / "absent")
    with pytest.raises(InputError, match=r"Known: Chroma .*LangChain.*LanceDB.*Qdrant"):
        look(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        look(tmp_path / "file")
    (tmp_path / "edge_config.json").write_text("{}")
    with pytest.raises(InputError, match="qdrant-edge"):
        look(tmp_path)


def test_links_and_pipes_are_not_followed(copied: Any, tmp_path: Path) -> None:
    folder = copied("langchain")
    outside = tmp_path / "outside.txt"
    outside.write_text(folders.text(3))
    (folder / "link.txt").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    contents = look(folder)
    assert contents.leftovers == ()
    assert contents.files == 2
    (folder / "index.pkl").unlink()
    (folder / "index.pkl").symlink_to(outside)
    contents = look(folder)
    assert contents.rows == ()
    assert contents.collections[0].vectors == 90


def test_lancedb_that_is_not_installed_is_named(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_unlearn.errors import EnvironmentFailure

    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(EnvironmentFailure, match=r"llm-unlearn\[peers\]"):
        look(made("lance"))


def test_vectors_are_what_the_library_wrote(made: Any) -> None:
    """The parser of flat indexes against FAISS's own reader."""
    import faiss

    from llm_unlearn.retrieval.foreign.langchain import _parse

    path = made("langchain") / "index.faiss"
    index = faiss.read_index(str(path))
    *_, vectors = _parse(path.read_bytes(), path)
    assert vectors is not None
    assert np.array_equal(vectors, index.reconstruct_n(0, index.ntotal))
