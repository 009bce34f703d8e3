"""The bench runs, finds residue where there is some, and prints its table."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.retrieval import bench
from llm_unlearn.retrieval.bench import life, measure, residue
from llm_unlearn.retrieval.embedding import Floats


def test_bench_measures_every_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((330, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen, _ = bench.choose(["ours", "ours-flat", "faiss-flat", "faiss-flat16", "faiss-hnsw"])
    rows = bench.run(vectors, chosen, queries=10, deletions=5, folder=tmp_path)
    assert {"ours", "ours-flat", "faiss-flat"} <= {row.store for row in rows}
    for row in rows:
        assert min(row.recall, row.recall_after) >= (0.98 if "16" in row.store else 1.0)
        assert (row.texts_left, row.vectors_left) == (0, 0)
        assert row.deleted == (1 if row.store == "faiss-hnsw" else 5)
        assert (row.life is not None) == row.store.startswith("ours")
        if row.device is not None and row.life:
            assert row.device == residue.Left(copy=0, texts=0, vectors=0, keys=0)
            assert row.life.open < row.life.memory  # seconds and mebibytes
        assert min(row.ingest, row.delete[0], row.search[0], row.search_after[0]) > 0
    assert list(tmp_path.iterdir()) == []
    out = io.StringIO()
    Console(file=out, width=200).print(*bench.tables(rows))
    assert "ours-flat" in out.getvalue()
    with pytest.raises(InputError):
        bench.run(vectors, chosen, queries=10, deletions=100)


def test_the_nearest_are_those_of_a_sort() -> None:
    rng = np.random.default_rng(1)
    stored = rng.standard_normal((500, 8)).astype(np.float32)
    asked = rng.standard_normal((7, 8)).astype(np.float32)
    gone = [3, 11, 49]
    kept = [row for row in range(500) if row // 10 not in gone]
    for query, found in zip(asked, measure._nearest(stored, asked, gone), strict=True):
        assert found == set(sorted(kept, key=lambda row: -float(stored[row] @ query))[:10])


def test_what_is_asked_comes_from_everywhere() -> None:
    """Rows lie in files by kind; the last ones alone would be of one kind."""
    rows = np.arange(10_000, dtype=np.float32)[:, None]
    asked, stored = measure._split(rows, 200, seed=0)
    assert sorted([*asked[:, 0], *stored[:, 0]]) == list(range(10_000))
    for some in (asked[:, 0], bench.thinned(rows, 200)[:, 0]):
        assert len(set(some)) == 200
        assert some.tolist() == sorted(some)
        tenths = np.bincount((some // 1000).astype(int), minlength=10)
        assert tenths.min() >= 5  # of 20 expected in each tenth
    assert bench.thinned(rows, 10_000) is rows


def test_what_other_stores_need_is_asked_for_by_name() -> None:
    chosen, absent = bench.choose()
    assert not set(chosen) & set(absent)
    assert {"chroma", "lancedb", "qdrant-edge", "sqlite-vec"} <= set(chosen) | set(absent)
    for name in absent:
        with pytest.raises(InputError, match=name):
            bench.choose([name])


def test_an_unknown_store_is_named() -> None:
    with pytest.raises(InputError, match="pinecone"):
        bench.choose(["ours", "pinecone"])


def test_texts_are_read_once_each_and_embedding_goes_on_after_an_interruption(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text(
        "The tide came in. It went\nout again.\n\nThe tide came in.\n7."
    )
    (tmp_path / "b.jsonl").write_text('{"q": "Who rowed? Who sank?", "c": {"A": "Ines", "n": 4}}\n')
    (tmp_path / "c.json").write_text('[{"q": "Who rowed? Who sank?", "c": ["Perpetua"]}]')
    (tmp_path / "d.bin").write_text("not read")
    texts = bench.read_texts([tmp_path])
    assert texts == [
        *("The tide came in.", "It went out again.", "Who rowed? Who sank?", "Ines", "Perpetua"),
    ]
    many = [f"text {i}" for i in range(10_000)]
    calls: list[int] = []

    def encode(batch: Sequence[str], stop: int) -> Floats:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(len(batch))
        return np.array([[len(text), int(text.split()[1])] for text in batch], np.float32)

    cache = tmp_path / "cache.npy"
    with pytest.raises(KeyboardInterrupt):
        bench.embed_texts(many, partial(encode, stop=100), 2, cache)
    done = sum(calls)
    found = bench.embed_texts(many, partial(encode, stop=-1), 2, cache)
    assert found[:, 1].tolist() == list(range(10_000))
    assert done < sum(calls) < 10_000 + done  # the first part was not done again
    assert bench.embed_texts(many[:3], partial(encode, stop=-1), 2, cache).shape == (3, 2)


def test_vectors_are_checked(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        bench.load_vectors(tmp_path / "none.npy")
    for name, bad in (("a", np.ones(3, np.float32)), ("b", np.ones((2, 3), np.float32))):
        np.save(tmp_path / name, bad)
        with pytest.raises(InputError):
            bench.load_vectors(tmp_path / f"{name}.npy")
    np.save(tmp_path / "c", bench.synthetic(1000, 8))
    assert bench.load_vectors(tmp_path / "c.npy").shape == (1000, 8)


def test_the_peak_of_a_child_is_its_own() -> None:
    """The parent holds 400 MiB when it starts the child, which holds far less."""
    held = np.ones(50 << 20, np.float64)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        peak = pool.submit(life._peak).result()
    assert 10 < peak < held.nbytes / 2**20
