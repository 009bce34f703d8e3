"""Exact answers, ties, masks, and bits that do not depend on history."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_unlearn.retrieval.index import VectorIndex, exact_scores

KINDS = ("signs", "flat", "flat16")
DIM = 24


def unit_rows(rng: np.random.Generator, n: int, dim: int = DIM) -> Any:
    rows = rng.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def reference(documents: dict[bytes, Any], query: Any, k: int) -> list[tuple[float, bytes, int]]:
    """Every chunk scored and sorted, with nothing but numpy and `sorted`."""
    scored = []
    for handle, vectors in documents.items():
        for chunk, score in enumerate(exact_scores(vectors, query).tolist()):
            scored.append((-score, handle, chunk))
    return [(-score, handle, chunk) for score, handle, chunk in sorted(scored)[:k]]


def answer(index: VectorIndex, query: Any, k: int, visible: Any = None) -> list[Any]:
    return [(s, e.handle, c) for s, e, c in index.search(query, k, visible)]


def test_scores_by_hand() -> None:
    """(0.6, 0.8) . (0.8, 0.6) = 0.96; the rows are exact in float32 after division by powers of 2.

    (0.5, 0.5, 0.5, 0.5) . (1, 0, 0, 0) = 0.5, and . itself = 1.
    """
    rows = np.array([[0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], [0, -1, 0, 0]], np.float32)
    assert exact_scores(rows, rows[0]).tolist() == [1.0, 0.5, -0.5]
    near = exact_scores(np.array([[0.6, 0.8]], np.float32), np.array([0.8, 0.6], np.float32))
    assert near[0] == pytest.approx(0.96, abs=1e-7)


def test_scores_agree_with_correctly_rounded_sums() -> None:
    rng = np.random.default_rng(1)
    rows, query = unit_rows(rng, 50, 384), unit_rows(rng, 1, 384)[0]
    for row, score in zip(rows, exact_scores(rows, query), strict=True):
        exact = math.fsum((row.astype(np.float64) * query.astype(np.float64)).tolist())
        assert score == pytest.approx(exact, abs=1e-15)


@given(st.integers(1, 300), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_score_bits_do_not_depend_on_position(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, query = unit_rows(rng, n, 384), unit_rows(rng, 1, 384)[0]
    order = rng.permutation(n)
    together = exact_scores(rows, query)
    assert exact_scores(rows[order], query).tobytes() == together[order].tobytes()
    alone = np.concatenate([exact_scores(rows[i : i + 1], query) for i in range(n)])
    assert alone.tobytes() == together.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_exact(kind: Any) -> None:
    rng = np.random.default_rng(2)
    documents = {bytes([i]) * 16: unit_rows(rng, int(rng.integers(1, 6))) for i in range(200)}
    index = VectorIndex(DIM, kind)
    index.add([(handle, None, vectors) for handle, vectors in documents.items()])
    for k in (1, 5, 40, index.chunks, index.chunks + 3):
        query = unit_rows(rng, 1)[0]
        assert answer(index, query, k) == reference(documents, query, k)


@pytest.mark.parametrize("kind", KINDS)
def test_many_equal_scores_are_ordered_by_handle(kind: Any) -> None:
    """500 equal vectors: more than any first list of candidates, so the list must widen."""
    rng = np.random.default_rng(3)
    same, other = unit_rows(rng, 2)
    handles = [bytes(rng.permutation(256).astype(np.uint8)[:16]) for _ in range(500)]
    index = VectorIndex(DIM, kind)
    index.add([(handle, None, same[None, :].copy()) for handle in handles])
    index.add([(b"\xff" * 16, None, other[None, :])])
    best = answer(index, same, 7)
    assert [handle for _, handle, _ in best] == sorted(handles)[:7]
    assert len({score for score, _, _ in best}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_percent_visible_gets_a_full_and_exact_list(kind: Any) -> None:
    rng = np.random.default_rng(4)
    documents = {i.to_bytes(16, "big"): unit_rows(rng, 2) for i in range(1500)}
    index = VectorIndex(DIM, kind)
    index.add([(handle, None, vectors) for handle, vectors in documents.items()])
    allowed = {handle: v for i, (handle, v) in enumerate(documents.items()) if i % 100 == 7}
    visible = np.array([entry is not None and entry.handle in allowed for entry in index.numbers])
    for _ in range(5):
        query = unit_rows(rng, 1)[0]
        assert answer(index, query, 10, visible) == reference(allowed, query, 10)
    assert answer(index, query, 5, np.zeros(len(visible), np.bool_)) == []


Steps = st.lists(st.tuples(st.booleans(), st.integers(0, 14)), max_size=50)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(steps=Steps, seed=st.integers(0, 1000))
def test_history_leaves_no_trace(kind: Any, steps: list[tuple[bool, int]], seed: int) -> None:
    """After any additions and removals: bytes and answers of an index that had the rest only.

    Vectors come from a pool of three, so equal scores are the rule.
    """
    rng = np.random.default_rng(seed)
    pool = unit_rows(rng, 3)
    index, model = VectorIndex(DIM, kind), dict[bytes, Any]()
    for adding, number in steps:
        handle = bytes([number * 17 % 256]) * 16
        if adding and handle not in model:
            model[handle] = pool[rng.integers(0, 3, size=number % 5)]
            index.add([(handle, None, model[handle])])
        elif not adding:
            index.remove([handle])
            model.pop(handle, None)
    fresh = VectorIndex(DIM, kind)
    fresh.add([(handle, None, model[handle]) for handle in sorted(model)])
    assert (len(index), index.chunks) == (len(fresh), fresh.chunks)

    def canonical(one: VectorIndex) -> list[Any]:
        return [(e.handle, one.vectors(e).tobytes(), one.codes(e)) for e in one.entries()]

    assert canonical(index) == canonical(fresh)
    for query in (*pool, unit_rows(rng, 1)[0]):
        for k in (1, 4, 100):
            assert answer(index, query, k) == answer(fresh, query, k) == reference(model, query, k)


@pytest.mark.parametrize("kind", KINDS)
def test_removed_vectors_are_overwritten_in_memory(kind: Any) -> None:
    rng = np.random.default_rng(5)
    index = VectorIndex(DIM, kind)
    index.add([(bytes([i]) * 16, None, unit_rows(rng, 3)) for i in range(10)])
    entry = index.get(bytes([3]) * 16)
    assert entry is not None
    needle, code = index.vectors(entry).tobytes(), index.codes(entry)
    index.remove([entry.handle])
    assert needle[: 4 * DIM] not in index._vectors.tobytes()
    assert code[: len(code) // 3] not in index._codes.read(np.arange(30)).tobytes()


class TestSigns:
    """More than 2,000 chunks, so that the codes choose the candidates."""

    N = 4000

    def build(self, documents: dict[bytes, Any], order: Any) -> VectorIndex:
        index = VectorIndex(DIM, "signs")
        index.add([(handle, None, documents[handle]) for handle in order])
        return index

    def test_history_leaves_no_trace(self) -> None:
        """Equal vectors by the hundred straddle the cut of the candidates, in another order."""
        rng = np.random.default_rng(6)
        pool = unit_rows(rng, 12)
        documents = {
            i.to_bytes(16, "big"): pool[rng.integers(0, 12, 2)] if i % 2 else unit_rows(rng, 2)
            for i in range(self.N // 2)
        }
        handles = list(documents)
        shuffled = [handles[i] for i in rng.permutation(len(handles))]
        index = self.build(documents, shuffled)
        extra = {(10**6 + i).to_bytes(16, "big"): unit_rows(rng, 3) for i in range(500)}
        index.add([(handle, None, vectors) for handle, vectors in extra.items()])
        index.remove(shuffled[:300])
        index.remove(list(extra))
        index.add([(handle, None, documents[handle]) for handle in sorted(shuffled[:300])])
        fresh = self.build(documents, sorted(handles))
        visible = rng.random(len(index.numbers)) < 0.8
        allowed = {e.handle for e, v in zip(index.numbers, visible, strict=True) if v and e}
        mirrored = np.array([e is not None and e.handle in allowed for e in fresh.numbers])
        for query in (*pool[:4], *unit_rows(rng, 4)):
            for k in (1, 10, 300):
                assert answer(index, query, k) == answer(fresh, query, k)
                assert answer(index, query, k, visible) == answer(fresh, query, k, mirrored)

    def test_recall(self) -> None:
        """Of the exact ten nearest among 27,000 vectors in clusters of ten."""
        rng = np.random.default_rng(7)
        centres = unit_rows(rng, 3000, 128)
        noise = 0.05 * rng.standard_normal((3000, 10, 128))
        rows = centres[:, None, :] + noise
        rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
        documents = {i.to_bytes(16, "big"): rows[i] for i in range(3000)}
        index = VectorIndex(128, "signs")
        index.add([(handle, None, vectors) for handle, vectors in documents.items()])
        index.remove([i.to_bytes(16, "big") for i in range(0, 600, 2)])
        for i in range(0, 600, 2):
            del documents[i.to_bytes(16, "big")]
        found = 0
        for i in range(20):
            query = unit_rows(rng, 1, 128)[0] * 0.3 + centres[100 * i + 1]
            query = (query / np.linalg.norm(query)).astype(np.float32)
            right = reference(documents, query, 10)
            found += len({r[1:] for r in right} & {r[1:] for r in answer(index, query, 10)})
        assert found >= 198
