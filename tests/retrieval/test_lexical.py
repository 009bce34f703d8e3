"""BM25, fusion and diversity by hand; the three search modes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llm_unlearn.documents import Document
from llm_unlearn.errors import AccessDenied, InputError
from llm_unlearn.retrieval import Store, Where
from llm_unlearn.retrieval.fusion import diversify, fuse
from llm_unlearn.retrieval.lexical import Lexical, words

STAFF = ["staff"]


def test_words() -> None:
    assert words("Zoë's full-moon, 2ND_try!") == ["zoë", "s", "full", "moon", "2nd", "try"]


def test_bm25_by_hand() -> None:
    """Two chunks: "moon moon sun" and "sun"; N = 2, mean length (3 + 1) / 2 = 2.

    "moon" is in n = 1: idf = ln(1 + 1.5 / 1.5) = ln 2. In the first chunk tf = 2 and the length
    norm is 1.2 (0.25 + 0.75 * 3 / 2) = 1.65, so the score is ln 2 * 2 * 2.2 / (2 + 1.65).
    "sun" is in both: idf = ln(1 + 0.5 / 2.5) = ln 1.2; second chunk: norm 1.2 (0.25 + 0.375) = 0.75,
    score ln 1.2 * 2.2 / 1.75; first: ln 1.2 * 2.2 / 2.65.
    """
    index = Lexical()
    index.add(b"a", ["Moon moon sun"])
    index.add(b"b", ["sun"])
    assert index.search("MOON", 5) == [(pytest.approx(math.log(2) * 4.4 / 3.65), (b"a", 0))]
    assert index.search("sun", 5) == [
        (pytest.approx(math.log(1.2) * 2.2 / 1.75), (b"b", 0)),
        (pytest.approx(math.log(1.2) * 2.2 / 2.65), (b"a", 0)),
    ]
    assert index.search("stars", 5) == []


def test_neither_removed_nor_hidden_documents_move_a_score() -> None:
    full, part = Lexical(), Lexical()
    texts = {bytes([i]): [f"moon {'sun ' * i}", "sea" * (i % 2)] for i in range(8)}
    for handle, chunks in texts.items():
        full.add(handle, chunks)
        if handle[0] % 3:
            part.add(handle, chunks)
    right = part.search("moon sun sea", 20)
    assert full.search("moon sun sea", 20) != right
    assert full.search("moon sun sea", 20, lambda handle: bool(handle[0] % 3)) == right
    for handle in texts:
        if not handle[0] % 3:
            full.remove(handle)
    assert full.search("moon sun sea", 20) == right
    assert full._holders == part._holders


def test_fusion_by_hand() -> None:
    """b: 1/62 + 1/61; a: 1/61; c: 1/62. Equal sums: the smaller key first."""
    a, b, c = (b"a", 0), (b"b", 0), (b"c", 0)
    assert fuse([[a, b], [b, c]]) == [b, a, c]
    assert fuse([[c], [a]]) == [a, c]
    assert fuse([[], []]) == []


def test_diversity_by_hand() -> None:
    """Relevance 0.9, 0.89, 0.5; the first two are the same vector, the third is orthogonal.

    With diversity 0.5 the second is worth 0.445 - 0.5 * 1 = -0.055, the third 0.25 - 0 = 0.25.
    """
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert diversify([0.9, 0.89, 0.5], vectors, 3, 0.5) == [0, 2, 1]
    assert diversify([0.9, 0.89, 0.5], vectors, 3, 0.0) == [0, 1, 2]
    assert diversify([0.5, 0.9], vectors[:2], 5, 0.0) == [1, 0]
    assert diversify([], np.empty((0, 2), np.float32), 3, 0.5) == []


def test_modes(store: Store) -> None:
    store.add(
        Document(id=f"d{i}", text=f"number {i} of the {'herring' if i % 7 == 3 else 'salmon'} run")
        for i in range(30)
    )
    store.add([Document(id="secret", text="herring herring", acl=("board",))])

    def ask(**options: Any) -> list[str]:
        hits = store.search("herring", groups=STAFF, **options)
        assert all(-1 <= hit.score <= 1 for hit in hits)
        return [hit.document for hit in hits]

    holders = {"d3", "d10", "d17", "d24"}
    assert set(ask(mode="lexical", k=20)) == holders
    assert set(ask(mode="hybrid", k=4)) == holders
    assert len(ask(mode="hybrid", k=30)) == 30
    store.update(Document(id="d3", text="nothing of the kind"))
    store.delete(id="d10")
    store.add([Document(id="new", text="one more herring")])
    assert set(ask(mode="lexical", k=20)) == {"d17", "d24", "new"}
    assert ask(mode="lexical", k=20, where=Where(subjects=["d17"])) == ["d17"]
    assert ask(mode="hybrid", k=5, diversity=0.3)[0] in {"d17", "d24", "new"}
    assert len(set(ask(diversity=0.9, k=20))) == 20
    with pytest.raises(AccessDenied):
        store.search("herring", groups=[], mode="lexical")
    for wrong in ({"mode": "psychic"}, {"diversity": 1.5}):
        with pytest.raises(InputError):
            ask(**wrong)
