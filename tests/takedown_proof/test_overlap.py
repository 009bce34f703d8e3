"""Folding and passages: what two texts share, whatever was done to their looks."""

from __future__ import annotations

import random
import time
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.takedown.overlap import (
    TILE,
    Tiler,
    fold,
    jaccard,
    passages,
    shingles,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=80)


@given(TEXT)
def test_unicode_forms_and_case_fold_alike(text: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert fold(unicodedata.normalize(form, text)).letters == fold(text).letters
    for change in (str.upper, str.casefold):
        assert fold(change(text)).letters == fold(text).letters


@given(TEXT)
def test_folding_is_idempotent(text: str) -> None:
    assert fold(" ".join(fold(text).words)).words == fold(text).words


def test_folding_by_hand() -> None:
    assert fold("Straße STRASSE").words == ("strasse", "strasse")
    assert fold("İzmir ılık").words == ("izmir", "ilik")
    assert fold("ﬁne\u00ad ze\u200bro").words == ("fine", "zero")
    assert fold("½ cup, x²").words == ("1", "2", "cup", "x2")
    assert fold("東京に行く").words == ("東", "京", "に", "行", "く")
    assert fold("?!… —").words == ()


def test_spans_point_into_the_text_as_given() -> None:
    folded = fold("  ﬁne — Straße!")
    assert folded.letters == "finestrasse"
    assert folded.span(0, 2) == (2, 3)  # one ligature holds both letters
    assert folded.span(4, 11) == (8, 14)
    assert [folded.count_words(*span) for span in ((0, 11), (4, 11), (3, 11), (0, 3))] == [
        2,
        1,
        1,
        1,
    ]


def test_shingles_by_hand() -> None:
    """Four words have two runs of three; one of the four runs of two texts is shared: 1/3."""
    a, b = ("the", "full", "moon", "rose"), ("full", "moon", "rose", "late")
    assert shingles(a, 3) == {"the full moon", "full moon rose"}
    assert jaccard(shingles(a, 3), shingles(b, 3)) == 1 / 3
    assert shingles(("short",), 3) == {"short"}
    assert shingles((), 3) == set()
    assert jaccard(set(), set()) == 0


def test_a_passage_bridges_single_wrong_letters() -> None:
    a = "Ines Valderrama blamed the moon in public and herself in private."
    b = "It says: lnes Valderrama blamed the mcon in publlc and herself in private, it does."
    (found,) = passages(a, b)
    assert a[slice(*found.a)] == a[1:-1]
    assert b[slice(*found.b)] == b[10:73]
    assert found.words == 11
    assert 0.9 < found.agreement < 1


def test_a_passage_ends_where_the_texts_part() -> None:
    a = "first part of the story. second part of the story."
    b = "second part of the story. Then quite a lot of something else happened. first part"
    assert [b[slice(*p.b)] for p in passages(a, b)] == ["second part of the story", "first part"]


@given(st.text("abc d", max_size=60), st.text("abc d", max_size=60))
def test_tiles_are_true(a: str, b: str) -> None:
    """Every tile is a run of at least TILE equal letters, and tiles do not overlap in b."""
    first, second = fold(a), fold(b)
    end = 0
    for passage in Tiler(first).passages(second):
        for tile in passage.tiles:
            assert tile.length >= TILE
            run = first.letters[tile.a : tile.a + tile.length]
            assert run == second.letters[tile.b : tile.b + tile.length]
            assert tile.b >= end
            end = tile.b + tile.length


@given(st.text("abcde ", min_size=12, max_size=200))
def test_a_text_shares_all_of_itself(text: str) -> None:
    folded = fold(text)
    if len(folded.letters) >= TILE:
        tiles = [t for p in Tiler(folded).passages(folded) for t in p.tiles]
        assert sum(tile.length for tile in tiles) == len(folded.letters)


def test_repetition_does_not_make_it_slow() -> None:
    """A text that repeats itself 4,000 times is compared in time linear in its length."""
    a, b = fold("la " * 4000), fold("la " * 3999 + "lb")
    start = time.perf_counter()
    Tiler(a).passages(b)
    words = random.Random(0).choices(["alpha", "bravo", "charlie"], k=4000)
    Tiler(fold(" ".join(words))).passages(fold(" ".join(reversed(words))))
    assert time.perf_counter() - start < 5
