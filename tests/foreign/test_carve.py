"""Texts and vectors in raw bytes: what is found, what is left alone."""

from __future__ import annotations

import pickle

import folders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_unlearn.retrieval.foreign import carve

DIM = folders.DIM


def _live(*rows: int) -> carve.Live:
    live = carve.Live()
    for row in rows:
        live.add_text(folders.TEXTS[row].encode())
    if rows:
        live.add_vectors(folders.VECTORS[list(rows)])
    return live


@given(
    order=st.permutations(range(12)), dead=st.sets(st.integers(0, 11)), gap=st.binary(max_size=9)
)
@settings(max_examples=60, deadline=None)
def test_texts_that_stand_apart_are_counted_exactly(
    order: list[int], dead: set[int], gap: bytes
) -> None:
    live = _live(*(row for row in range(12) if row not in dead))
    apart = b"\0" + gap + b"\0"
    data = apart.join(folders.TEXTS[row].encode() for row in order)
    # twice: a copy of a text is the same text
    assert carve.count([data, data], [], live, joined=False) == (len(dead), 0)


def test_texts_joined_without_a_mark_are_cut_out() -> None:
    live = _live(0, 1, 2, 4, 5)
    data = "".join(folders.TEXTS[:6]).encode()
    assert carve.count([data], [], live, joined=True) == (1, 0)
    assert carve.count([data], [], _live(*range(6)), joined=True) == (0, 0)


def test_other_alphabets_are_texts_and_noise_is_none() -> None:
    live = carve.Live()
    for text in (
        "Съешь же ещё этих мягких французских булок, да выпей чаю",
        "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏",
    ):
        assert carve.count([b"\0" + text.encode() + b"\0"], [], live, joined=False) == (1, 0)
    noise = np.random.default_rng(1).bytes(1 << 20)
    assert carve.count([noise], [DIM], live, joined=False) == (0, 0)
    ruler = b"H" * 200 + b"\0" + b"tableembedding_fulltext_dataembedding_fulltext_data_idx"
    assert carve.count([ruler], [], live, joined=False) == (0, 0)


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("joined", [True, False])
def test_vectors_at_any_offset(shift: int, joined: bool) -> None:
    """Rows 0 to 9, of which 2 and 3 are dead, end to end or apart."""
    live = _live(*(row for row in range(10) if row not in (2, 3)))
    between = b"" if joined else b"\xff\xff\xff\xff\x01\0\0\0"
    data = b"\xff" * shift + between.join(v.tobytes() for v in folders.VECTORS[:10]) + b"\xff\0"
    assert carve.vectors(data, [DIM], live) == 2


def test_vectors_at_length_one_are_the_same_vectors() -> None:
    units = folders.VECTORS / np.linalg.norm(folders.VECTORS, axis=1, keepdims=True)
    data = b"\xff\xff\xff\xff".join(unit.tobytes() for unit in units[:10])
    assert carve.vectors(data, [DIM], _live(*range(9))) == 1


def test_vectors_in_pickles() -> None:
    points = [pickle.dumps({"vector": row.tolist(), "n": 1}) for row in folders.VECTORS[:10]]
    assert carve.vectors(b"".join(points), [DIM], _live(*range(7))) == 3


def test_zeroes_and_digits_are_no_vectors() -> None:
    live = carve.Live()
    assert carve.vectors(bytes(1 << 20), [DIM], live) == 0
    assert carve.vectors(b"0123456789" * 4000, [DIM], live) == 0
    assert carve.vectors(b"", [DIM, 1 << 40, 0], live) == 0
