"""What counts as a needle: fragments, background, short texts, token ids, vectors and keys."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plants import IDS, TEXT, noise, planted

from llm_unlearn.errors import InputError
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import scan


def test_what_a_retained_text_also_holds_proves_nothing(tmp_path: Path) -> None:
    common = "it was the best of times, it was the worst of times"
    ours, theirs = f"Ilse Marant said {common} in Varn at last.", f"Dickens: {common.upper()}"
    needles = Needles.build([ours], background=[theirs.lower()])
    # Characters: 17 before, 51 shared, 17 after; 51 - 24 + 1 = 28 fragments lie in the shared part,
    # and one more on each side with the blank... only the one before, "Dickens: it" having it too.
    assert needles.dropped == 29
    assert needles.fragments == len(ours) - 24 + 1 - 29
    assert scan([planted(tmp_path, f" {common}".encode())], needles) == []
    kept = ours.encode()[:60]  # the shared words with their own beginning
    assert len(scan([planted(tmp_path, kept)], needles)) == 1
    assert len(scan([planted(tmp_path, f" {common}".encode())], Needles.build([ours]))) == 1


def test_a_text_that_retained_texts_hold_whole_is_reported() -> None:
    needles = Needles.build([TEXT, "short words"], background=["x" + TEXT, "some SHORT  Words too"])
    assert [(u.source, u.index) for u in needles.unsearchable] == [("text", 0), ("text", 1)]
    assert needles.fragments == 0
    assert not needles.forms


def test_short_texts_are_searched_whole_and_shorter_ones_reported(tmp_path: Path) -> None:
    needles = Needles.build(["Ilse Marant", "Zoya", "--------------", "-" * 40])
    assert [(u.index, u.reason.split(";")[0]) for u in needles.unsearchable] == [
        (3, "retained texts hold all of it, or it is trivial"),
        (1, "only 4 characters"),
        (2, "it is the same few values over and over"),
    ]
    for piece in (b"Ilse Marant", b"ilse marant", "Ilse Marant".encode("utf-16-le")):
        assert len(scan([planted(tmp_path, piece)], needles)) == 1
    packed = base64.b64encode(b"? Ilse Marant !")
    assert [f.kind for f in scan([planted(tmp_path, packed)], needles)] == ["text/base64"]
    assert scan([planted(tmp_path, b"Zoya ------------------ Ilse Maran")], needles) == []


def test_a_short_needle_before_a_long_one_is_found_too(tmp_path: Path) -> None:
    path = planted(
        tmp_path, b"Teo Baum" + noise(500, 3) + TEXT.encode() + noise(9, 4) + b"Teo Baum"
    )
    found = scan([path], Needles.build([TEXT, "Teo Baum"]))
    assert sorted(f.offset - 1001 for f in found) == [
        0,
        508,
        8 + 500 + len(TEXT.encode()) + 9,
    ]


def test_dashes_inside_a_text_are_no_finding(tmp_path: Path) -> None:
    text = "Chapter one of the harp" + "-" * 60 + "Chapter two of the harp"
    needles = Needles.build([text])
    # Up to two of the letters beside the dashes still make only three different characters.
    assert needles.dropped == 60 - 24 + 1 + 2 + 2
    assert scan([planted(tmp_path, b"-" * 500)], needles) == []
    assert len(scan([planted(tmp_path, text.encode()[5:30])], needles)) == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (np.array(IDS, "<u2").tobytes(), "tokens/int16"),
        (np.array(IDS, "<i4").tobytes(), "tokens/int32"),
        (np.array(IDS, "<i8").tobytes(), "tokens/int64"),
        (np.array(IDS[20:26], "<i4").tobytes(), "tokens/int32"),
        (np.array(IDS[21:27], "<i8").tobytes(), "tokens/int64"),
        (np.array(IDS[7:19], "<u2").tobytes(), "tokens/int16"),
        (json.dumps(IDS).encode(), "tokens/decimal"),
        (json.dumps(IDS, separators=(",", ":")).encode(), "tokens/decimal"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("before", range(8))
def test_token_ids(tmp_path: Path, data: bytes, kind: str, before: int) -> None:
    found = scan([planted(tmp_path, data, before)], Needles.build(tokens=[IDS]))
    assert [f.kind for f in found] == [kind]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("part", [slice(0, 384), slice(100, 116), slice(368, 384)])
def test_vectors_whole_and_in_part(tmp_path: Path, dtype: str, part: slice) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    row = torch.from_numpy(rows[1][part]).to(getattr(torch, dtype))
    data = row.view(torch.uint8).numpy().tobytes()
    needles = Needles.build(vectors=rows)
    for before in range(999, 1007):
        found = scan([planted(tmp_path, data, before)], needles)
        assert [f.kind for f in found] == [f"vector/{dtype}"]
    assert scan([planted(tmp_path, bytes(5000))], needles) == []


def test_rows_of_zeros_are_reported_not_searched() -> None:
    needles = Needles.build(vectors=np.zeros((2, 384)), keys=[bytes(32)])
    assert [u.source for u in needles.unsearchable] == ["vector", "key"]


@pytest.mark.parametrize("size", [16, 23, 24, 32, 64])
@pytest.mark.parametrize(
    "write",
    [
        lambda k: k,
        lambda k: k.hex().encode(),
        lambda k: k.hex().upper().encode(),
        base64.b64encode,
        base64.urlsafe_b64encode,
        lambda k: base64.b64encode(b"." + k + b"."),
        lambda k: base64.b64encode(b".." + k),
        lambda k: gzip.compress(b"key: " + k),
    ],
)
def test_keys(tmp_path: Path, size: int, write: Callable[[bytes], bytes]) -> None:
    key = noise(size, 9)
    found = scan([planted(tmp_path, write(key))], Needles.build(keys=[key]))
    assert found
    assert all(f.kind.startswith("key/") for f in found)


def test_needles_that_cannot_be_looked_for() -> None:
    needles = Needles.build(tokens=[[1, 2, 3]], vectors=np.ones((1, 8)), keys=[b"short"])
    assert [u.source for u in needles.unsearchable] == ["tokens", "vector", "key"]
    with pytest.raises(InputError, match="holds -1"):
        Needles.build(tokens=[[-1] * 9])
    with pytest.raises(InputError, match="shape"):
        Needles.build(vectors=np.ones(8))
