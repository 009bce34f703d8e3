"""Closure: which copies are always found, and what is never taken for one."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llm_unlearn.takedown.closure import Candidate, Match, find_copies


@dataclass(frozen=True)
class Config:
    near_duplicate: float = 0.5
    noisy: float = 0.7
    containment: float = 0.8
    quotation_words: int = 30
    shingle_words: int = 4
    paraphrase: float = 0.82
    second_look: float = 0.65


CONFIG = Config()
VOCABULARY = [
    a + b + c
    for a in ("bra", "cle", "dor", "fen", "gri", "hal", "jun", "kel")
    for b in ("mo", "ti", "sa", "ve", "lu", "pe")
    for c in ("", "n", "rd", "st", "ling")
]


def prose(seed: int, words: int) -> str:
    """Made-up prose: sentences of five to fifteen words out of 240, each text its own."""
    dice = random.Random(seed)
    said: list[str] = []
    while len(said) < words:
        sentence = dice.choices(VOCABULARY, k=dice.randint(5, 15))
        said += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
    return " ".join(said[:words])


def find(request: list[str] | str, *texts: str, config: Config = CONFIG) -> list[Match]:
    wanted = [request] if isinstance(request, str) else request
    candidates = (Candidate(bytes([n]), text) for n, text in enumerate(texts))
    return list(find_copies(wanted, candidates, config=config))


def scan(text: str, dice: random.Random, rate: float = 0.05) -> str:
    """Wrong, lost and doubled letters as a bad scan makes them: 3/5, 1/5, 1/5 of all errors."""
    out = []
    for letter in text:
        if dice.random() >= rate:
            out.append(letter)
            continue
        kind = dice.random()
        if kind < 0.6:
            out.append(dice.choice("abcdefghijklmnopqrstuvwxyz"))
        elif kind >= 0.8:
            out.append(letter + dice.choice("abcdefghijklmnopqrstuvwxyz"))
    return "".join(out)


LETTERED = st.text(st.characters(categories=("L", "N", "M", "P", "Zs")), min_size=1, max_size=120)
LOOKS = st.lists(
    st.sampled_from(
        [
            str.upper,
            str.casefold,
            lambda t: unicodedata.normalize("NFC", t),
            lambda t: unicodedata.normalize("NFD", t),
            lambda t: unicodedata.normalize("NFKC", t),
            lambda t: unicodedata.normalize("NFKD", t),
            lambda t: t.replace(" ", "\n"),
            lambda t: t.replace(" ", ""),
            lambda t: "\t" + t.replace(" ", "  ") + "\r\n",
            lambda t: t.replace(".", "").replace(",", " -- ").replace("'", "\u2019"),
            lambda t: "\u00ab" + t + "\u00bb",
            lambda t: "\u00ad".join(t),
        ]
    ),
    max_size=4,
)


@given(LETTERED, LOOKS)
def test_a_reformatted_copy_is_always_exact(text: str, looks: list[Callable[[str], str]]) -> None:
    if not any(character.isalnum() for character in text):
        text += "a"
    copy = text
    for look in looks:
        copy = look(copy)
    (match,) = find(text, copy)
    assert (match.kind, match.score, match.text) == ("exact", 1.0, 0)


def test_a_text_without_letters_matches_itself_only() -> None:
    assert [m.kind for m in find("🎉 🎉!", "🎉  🎉!", "🎉", "?!", "a")] == ["exact"]
    assert [m.handle for m in find("?!", "a", "", "?!")] == [b"\2"]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(30, 80),
    st.integers(0, 120),
    st.integers(0, 200),
    st.integers(0, 200),
    st.booleans(),
)
def test_a_long_enough_excerpt_is_always_found(
    seed: int, length: int, skip: int, before: int, after: int, shout: bool
) -> None:
    """30 words or more, from anywhere in the work, anywhere in another text."""
    work = prose(seed, 200)
    excerpt = " ".join(work.split()[skip : skip + length])
    carrier = f"{prose(seed + 1, before)} {excerpt.upper() if shout else excerpt} {prose(seed + 2, after)}"
    (match,) = find(work, carrier)
    assert match.kind in ("quotation", "near-duplicate", "exact")
    shown = " ".join(carrier[slice(*p.b)] for p in match.passages).casefold()
    inner = excerpt.split()[length // 3 : 2 * length // 3]
    assert " ".join(inner).casefold() in shown


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 300))
def test_unrelated_texts_are_never_copies(seed: int, a: int, b: int) -> None:
    """Prose of one small vocabulary, so that words are shared but no phrases."""
    if a > 1 or b > 1:
        assert find(prose(seed, a + 1), prose(seed + 1, b + 1)) == []


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(20, 120), st.floats(0, 0.2))
def test_word_near_duplicates_are_symmetric(seed: int, words: int, change: float) -> None:
    """Exactly so for the Jaccard index; shares of letters come from greedy tiling and may differ."""
    config = replace(CONFIG, noisy=1.0, containment=1.0, quotation_words=200)
    dice = random.Random(seed)
    a = prose(seed, words)
    b = " ".join(w if dice.random() >= change else dice.choice(VOCABULARY) for w in a.split())
    there, back = find(a, b, config=config), find(b, a, config=config)
    assert [(m.kind, m.score) for m in there] == [(m.kind, m.score) for m in back]


def test_noisy_copies_are_found() -> None:
    """5% wrong letters. All of 200 here; the rate on real text stands in docs/closure.md."""
    dice = random.Random(3)
    for seed in range(200):
        text = prose(seed, 40)
        (match,) = find(text, scan(text, dice))
        assert match.kind in ("near-duplicate", "exact")


def test_word_jaccard_by_hand() -> None:
    """13 words make 10 shingles of 4; one wrong word in the middle spoils 4: 6 / 14 < 0.5."""
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    copy = text.replace("seven", "zzzzz")
    strict = replace(CONFIG, noisy=1.0)
    assert find(text, copy, config=strict) == []
    (match,) = find(text, copy, config=replace(strict, near_duplicate=6 / 14))
    assert match.kind == "near-duplicate"
    assert match.score == pytest.approx(6 / 14)
    (match,) = find(text, copy)
    assert match.kind == "near-duplicate"  # by its letters
    assert match.score == pytest.approx((59 - 5) / 59)  # 59 letters, 5 of them wrong


def test_a_part_and_its_whole_are_quotations_both_ways() -> None:
    whole = prose(5, 120)
    part = " ".join(whole.split()[40:65])
    for a, b in ((whole, part), (part, whole)):
        (match,) = find(a, b)
        assert (match.kind, match.score) == ("quotation", 1.0)


def test_a_phrase_is_not_a_quotation() -> None:
    whole = prose(6, 120)
    assert find(whole, " ".join(whole.split()[40:52])) == []


def test_an_interleaved_copy_is_found() -> None:
    mine, other = prose(7, 120).split(". "), prose(8, 120).split(". ")
    mixed = ". ".join(line for pair in zip(mine, other, strict=False) for line in pair)
    (match,) = find(". ".join(mine), mixed)
    assert match.kind == "quotation"


def test_a_quotation_across_several_texts_of_a_request() -> None:
    """20 words of the end of one text and 20 of the start of the next: neither is enough alone."""
    texts = [prose(20, 80), prose(21, 80)]
    both = " ".join(texts[0].split()[-20:] + texts[1].split()[:20])
    carrier = f"{prose(22, 90)} {both} {prose(23, 90)}"
    (match,) = find(texts, carrier)
    assert match.kind == "quotation"
    assert find(texts[0], carrier) == find(texts[1], carrier) == []


def test_groups_are_closed_apart() -> None:
    texts = [prose(20, 80), prose(21, 80)]
    both = " ".join(texts[0].split()[-20:] + texts[1].split()[:20])
    carrier = f"{prose(22, 90)} {both} {prose(23, 90)}"
    candidates = [Candidate(b"c", carrier), Candidate(b"0", texts[0]), Candidate(b"1", texts[1])]
    found = find_copies(texts, candidates, config=CONFIG, groups=[7, 9])
    assert [(m.handle, m.group, m.kind) for m in found] == [(b"0", 7, "exact"), (b"1", 9, "exact")]


def test_a_repeated_phrase_counts_once() -> None:
    """15 shared words, said three times in the candidate, are 15 words, not 45."""
    work = prose(30, 120)
    phrase = " ".join(work.split()[10:25])
    carrier = " ".join(f"{prose(31 + n, 40)} {phrase}." for n in range(3))
    assert find(work, carrier) == []


def test_short_texts_match_whole_only() -> None:
    assert [m.kind for m in find("Jane Doe", "JANE-DOE", "Jane Doe wrote it", "Jane")] == ["exact"]
    assert find("", "text") == []


def test_a_name_inside_another_document_is_not_a_copy() -> None:
    assert find("Perpetua Lindqvist", f"{prose(1, 30)} Perpetua Lindqvist {prose(2, 30)}") == []


def test_unspaced_scripts() -> None:
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で"
    (match,) = find(text, f"彼はこう書いた：{text}それが始まりだった。")
    assert match.kind in ("near-duplicate", "quotation")


def test_passages_show_what_is_shared() -> None:
    text = prose(9, 60)
    carrier = f"{prose(10, 50)} {text} {prose(11, 50)}"
    (match,) = find(text, carrier)
    (passage,) = match.passages
    assert text[slice(*passage.a)] == text.rstrip(".")
    assert carrier[slice(*passage.b)] == text.rstrip(".")


def test_paraphrases_are_flagged_by_vectors() -> None:
    """Cosines by hand: (1,0)·(0.6,0.8) = 0.6 and (0,1)·(0.6,0.8) = 0.8."""
    request = np.array([[1, 0], [0, 1]], dtype=np.float32)
    rows = np.array([[0.6, 0.8], [-1, 0]], dtype=np.float32)
    candidates = [
        Candidate(b"close", prose(1, 20), rows),
        Candidate(b"far", prose(2, 20), rows[1:]),
        Candidate(b"none", prose(3, 20), None),
        Candidate(b"empty", prose(4, 20), rows[:0]),
        Candidate(b"copy", prose(0, 20), request),
    ]
    config = replace(CONFIG, paraphrase=0.7)
    found = list(find_copies([prose(0, 20)], candidates, config=config, request_vectors=request))
    assert [(m.handle, m.kind, m.text) for m in found] == [
        (b"close", "paraphrase", None),
        (b"copy", "exact", 0),
    ]
    assert found[0].score == pytest.approx(0.8)
    apart = find_copies(
        [prose(0, 20)] * 2,
        candidates[:1],
        config=replace(config, paraphrase=0.5),
        request_vectors=request,
        groups=[0, 1],
        vector_groups=[0, 1],
    )
    assert [(m.group, round(m.score, 3)) for m in apart] == [(0, 0.6), (1, 0.8)]


def test_candidates_are_streamed() -> None:
    """One candidate is asked for at a time, and nothing after the last match that was taken."""
    asked = []

    def stream() -> object:
        for n in range(10):
            asked.append(n)
            yield Candidate(bytes([n]), prose(0, 40))

    found = find_copies([prose(0, 40)], stream(), config=CONFIG)  # type: ignore[arg-type]
    next(found)
    next(found)
    assert asked == [0, 1]


def test_a_second_look_at_the_sentences() -> None:
    """By hand: near as a whole (0.7), and two, three or one of its four sentences said before."""
    said = {"The tide was late again today.": 0, "Ines blamed the moon for it.": 1}
    other = ["Nobody sold any rope in spring.", "Bicycles stand behind the old hall."]

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), 8), np.float32)
        for row, text in enumerate(texts):
            rows[row, said.get(text, 2 + row)] = 1
        return rows

    wanted = np.array([[1, 0]], np.float32)
    near, far = (np.array([[c, (1 - c * c) ** 0.5]], np.float32) for c in (0.7, 0.6))
    first, second = said

    def score(vector: NDArray[np.float32], *sentences_: str, look: bool = True) -> float | None:
        candidate = Candidate(b"x", " ".join(sentences_), vector)
        found = list(
            find_copies(
                [f"{first}\n{second}"],
                [candidate],
                config=replace(CONFIG, quotation_words=100, containment=1.0, near_duplicate=1.0),
                request_vectors=wanted,
                embed=embed if look else None,
            )
        )
        assert [match.kind for match in found] in ([], ["paraphrase"])
        return found[0].score if found else None

    half = (first, other[0], second, other[1])
    assert score(near, *half) == 1.0
    assert score(near, *half, look=False) is None
    assert score(far, *half) is None
    assert score(near, first, *other, "A third thing that nobody said.") is None
    assert score(near, first, other[0]) is None  # too few sentences


def test_a_second_look_at_the_turns_of_a_conversation() -> None:
    """By hand: a conversation lies at 0.7 from an answer; one turn is that answer in other words (0.9)."""
    answer = np.array([[1, 0, 0]], np.float32)
    turns = {"Where did she live?": [0, 0, 1], "In a mill.": [0.9, 0.19**0.5, 0], "Why?": [0, 1, 0]}
    whole, far = (np.array([[c, 0, (1 - c * c) ** 0.5]], np.float32) for c in (0.7, 0.6))

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([turns[text] for text in texts], np.float32)

    def score(vector: NDArray[np.float32], *said: str, look: bool = True) -> float | None:
        candidate = Candidate(b"x", " ".join(said), vector, said)
        found = list(
            find_copies(
                ["The mill was her home."],
                [candidate],
                config=CONFIG,
                request_vectors=answer,
                embed=embed if look else None,
            )
        )
        return found[0].score if found else None

    question, told, other = turns
    assert score(whole, question, told) == pytest.approx(0.9)
    assert score(whole, question, told, look=False) is None
    assert score(far, question, told) is None
    assert score(whole, question, other) is None
