"""Sign codes: by hand, in segments, on threads, after any history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_unlearn.retrieval.signs import SignCodes


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


def rows_of(rng: np.random.Generator, n: int, dim: int) -> Any:
    return rng.standard_normal((n, dim)).astype(np.float32)


def filled(vectors: Any, segment: int = 1 << 17) -> SignCodes:
    codes = SignCodes(vectors.shape[1], segment)
    codes.reserve(len(vectors))
    codes.write(0, vectors)
    codes.resize(len(vectors))
    return codes


def test_codes_and_scores_by_hand() -> None:
    """Signs of (1, -2, 3, 4, -5): bits 0, 2 and 3, so 1 + 4 + 8 = 13; zero counts as not positive.

    The score is the sum of the query's coordinates, each with the row's sign: 1 + 1 + 1 + 1 + 1 = 5
    for the row whose signs the query (1, -1, 1, 1, -1) has; its opposite is left out. FAISS rounds
    its tables to 8 bits, which moves no score here past another.
    """
    vectors = np.array([[1, -2, 3, 4, -5], [-1, 2, -3, -4, 5], [1, 2, 3, 4, 0]], np.float32)
    codes = filled(vectors)
    assert codes.encode(vectors).tolist() == [[13], [18], [15]]
    scores, rows = codes.search(np.array([1, -1, 1, 1, -1], np.float32), 3)
    assert rows.tolist() == [0, 2]
    assert scores == pytest.approx([5, 3], abs=0.2)


@pytest.mark.usefixtures("threads")
def test_segments_find_what_one_index_finds() -> None:
    """Also where one segment holds all of the best, so that its share is too small a guess."""
    rng = np.random.default_rng(1)
    vectors = rows_of(rng, 1000, 40)
    query = rows_of(rng, 1, 40)[0]
    vectors[256:384] = query + 0.1 * vectors[256:384]
    whole, parts = filled(vectors), filled(vectors, 64)
    mask = rng.random(1000) < 0.3
    for m in (1, 20, 150, 1000):
        for visible in (None, mask):
            one, many = (codes.search(query, m, visible) for codes in (whole, parts))
            assert one[0].tobytes() == many[0].tobytes()
            border = one[0][-1]  # among equal scores at the cut either may keep another
            assert set(one[1][one[0] > border]) == set(many[1][many[0] > border])
            assert len(one[1]) == min(m, 1000 if visible is None else int(mask.sum()))
            assert visible is None or visible[many[1]].all()


Steps = st.lists(st.tuples(st.booleans(), st.integers(1, 70)), max_size=12)


@settings(deadline=None, max_examples=60)
@given(steps=Steps, seed=st.integers(0, 1000))
def test_any_writes_equal_one_write(steps: list[tuple[bool, int]], seed: int) -> None:
    """Rows written, moved and cleared in any order: scores of an index written once."""
    rng = np.random.default_rng(seed)
    codes, held = SignCodes(24, 64), np.empty((0, 24), np.float32)
    for adding, n in steps:
        if adding:
            new = rows_of(rng, n, 24)
            codes.reserve(len(held) + n)
            codes.write(len(held), new)
            held = np.concatenate([held, new])
        else:
            n = min(n, len(held) // 2)
            size = len(held) - n
            codes.move(list(range(n)), list(range(size, size + n)))
            codes.clear(size, len(held))
            held[:n] = held[size:]
            held = held[:size]
        codes.resize(len(held))
    if len(held):
        query = rows_of(rng, 1, 24)[0]
        fresh = filled(held, 64)
        (mine, rows), (theirs, _) = codes.search(query, len(held)), fresh.search(query, len(held))
        assert mine.tobytes() == theirs.tobytes()
        assert sorted(rows.tolist()) == list(range(len(held)))
        assert codes.read(np.arange(len(held))).tobytes() == codes.encode(held).tobytes()
