"""The bench runs, finds residue where there is some, and prints its table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval import bench


def test_bench_measures_every_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((330, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = bench.run(vectors, queries=10, deletions=5, folder=tmp_path)
    assert {"ours, rabitq", "ours, flat", "FAISS Flat, rewritten"} <= {row.store for row in rows}
    for row in rows:
        assert (row.recall, row.recall_after) == (1.0, 1.0)
        assert (row.texts_left, row.vectors_left) == (0, 0)
        assert min(row.ingest, row.delete[0], row.search[0], row.search_after[0]) > 0
    assert list(tmp_path.iterdir()) == []
    out = io.StringIO()
    bench.show(rows, Console(file=out, width=200))
    assert "rabitq" in out.getvalue()
    with pytest.raises(InputError):
        bench.run(vectors, queries=10, deletions=100)
