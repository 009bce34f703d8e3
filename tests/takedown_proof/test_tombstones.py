"""Tombstones: what may not come in again, and that nothing of it is written down."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_unlearn.documents import Document
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.takedown.request import Request
from llm_unlearn.takedown.tombstones import Tombstones, chance, name_runs

SECRETS = {"tombstones": b"\7" * 32}
DICE = random.Random(0)
WORDS = [
    "".join(DICE.choices("abcdefghijklmnopqrstuvwxyz", k=DICE.randint(2, 9))) for _ in range(500)
]
MARK = b"m" * 16


def prose(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)).capitalize() + "."


def document(text: str, **fields: str) -> Document:
    return Document.model_validate({"id": "new", "text": text} | fields)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[Database, Keyring]]:
    keyring = Keyring.create(tmp_path / "keys", secrets=SECRETS)
    with Database.open(tmp_path / "workspace.db", create=True) as database:
        Tombstones.create_table(database)
        yield database, keyring


@pytest.fixture
def tombstones(home: tuple[Database, Keyring]) -> Tombstones:
    return Tombstones(*home)


def test_without_tombstones_everything_may_come_in(tombstones: Tombstones) -> None:
    assert tombstones.refuses(document(prose(0))) is None
    assert len(tombstones) == 0


def test_the_text_is_refused_however_it_looks(tombstones: Tombstones) -> None:
    text = prose(0)
    tombstones.add([document(text)], Request.internal(ids=["new"]), MARK)
    for copy in (text, text.upper(), text.replace(" ", "\n"), text.replace(".", " !")):
        reason = tombstones.refuses(document(copy, id="x"))
        assert reason is not None
        assert MARK.hex() in reason
        assert not any(word in reason.split() for word in text.split())
    assert tombstones.refuses(document(prose(1))) is None


def test_a_near_duplicate_is_refused_and_an_unrelated_text_is_not(tombstones: Tombstones) -> None:
    texts = [prose(n) for n in range(40)]
    tombstones.add([document(text) for text in texts], Request.internal(ids=["new"]), MARK)
    for text in texts:
        words = text.split()
        words[20] = "another"
        reason = tombstones.refuses(document(" ".join(words), id="x"))
        assert reason is not None
        assert "much like" in reason
    # two texts of 60 out of 500 words share 2% of their letter runs, where `chance` is below 1e-10
    assert all(tombstones.refuses(document(prose(n), id="x")) is None for n in range(100, 200))


def test_the_chance_by_hand() -> None:
    """s = 1: always. s = 0: never. Two bands of 128 at s**5 = 1/2 fail to agree 129 / 2**128."""
    assert chance(1.0) == 1
    assert chance(0.0) == 0
    assert 1 - chance(0.5 ** (1 / 5)) == pytest.approx(129 / 2**128, abs=1e-15)
    p = 0.5**5
    by_hand = 1 - (1 - p) ** 128 - 128 * p * (1 - p) ** 127
    assert chance(0.5) == pytest.approx(by_hand)


def test_the_chance_is_what_happens(tombstones: Tombstones) -> None:
    """Letters of a random alphabet, 60% of them replaced in one block: Jaccard index as chosen.

    A text of 400 letters has 396 runs of 5; with its last k letters replaced, 396 - k remain, so
    the index is (396 - k) / (396 + k). k = 132 gives 0.5, where `chance` says 0.912.
    """
    dice = random.Random(5)
    alphabet = [chr(code) for code in range(0x4E00, 0x5E00)]
    refused = 0
    for n in range(120):
        text = "".join(dice.choices(alphabet, k=400))
        copy = text[:-132] + "".join(dice.choices(alphabet, k=132))
        tombstones.add([document(text)], Request.internal(ids=["new"]), n.to_bytes(16))
        refused += tombstones.refuses(document(copy, id="x")) is not None
    # binomial(120, 0.912): mean 109.4, standard deviation 3.1
    assert 97 <= refused <= 120


def test_a_short_text_is_refused_only_as_it_was(tombstones: Tombstones) -> None:
    tombstones.add([document("Jane Doe, 12 Elm Street")], Request.internal(ids=["new"]), MARK)
    assert len(tombstones) == 1
    assert tombstones.refuses(document("jane doe 12 elm street")) is not None
    assert tombstones.refuses(document("Jane Doe, 13 Elm Street")) is None


def test_a_named_subject_is_refused_whatever_its_text(tombstones: Tombstones) -> None:
    tombstones.add(
        [document(prose(0), subject="Jane Doe")], Request.internal(subject="Jane Doe"), MARK
    )
    reason = tombstones.refuses(document(prose(9), subject="JANE  DOE"))
    assert reason is not None
    assert "subject" in reason
    assert tombstones.refuses(document(prose(9), subject="Jane Roe")) is None


def test_a_subject_that_was_not_named_is_not(tombstones: Tombstones) -> None:
    tombstones.add([document(prose(0), subject="Jane Doe")], Request.internal(ids=["new"]), MARK)
    assert tombstones.refuses(document(prose(9), subject="Jane Doe")) is None


def test_the_passage_of_a_request_is_refused(tombstones: Tombstones) -> None:
    tombstones.add([], Request.internal(text=prose(3)), MARK)
    assert tombstones.refuses(document(prose(3))) is not None


def test_lifting_leaves_what_another_request_asked(tombstones: Tombstones) -> None:
    text, other = prose(0), b"o" * 16
    for mark in (MARK, other):
        tombstones.add([document(text)], Request.internal(ids=["new"]), mark)
    assert tombstones.lift(MARK) == 129
    reason = tombstones.refuses(document(text))
    assert reason is not None
    assert other.hex() in reason
    tombstones.lift(other)
    assert tombstones.refuses(document(text)) is None
    assert len(tombstones) == 0
    assert tombstones.lift(MARK) == 0


def test_adding_twice_changes_nothing(tombstones: Tombstones) -> None:
    request = Request.internal(subject="Jane Doe")
    for _ in range(2):
        tombstones.add([document(prose(0)), document(prose(0))], request, MARK)
        assert len(tombstones) == 1 + 2 + 1 + 128  # the subject, two orders of its name, text


def test_a_failed_transaction_leaves_none(
    home: tuple[Database, Keyring], tombstones: Tombstones
) -> None:
    database, _ = home

    def interrupted() -> None:
        with database.transaction():
            tombstones.add([document(prose(0))], Request.internal(ids=["new"]), MARK)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert len(tombstones) == 0


def test_no_text_and_no_plain_hash_is_written(
    home: tuple[Database, Keyring], tombstones: Tombstones, tmp_path: Path
) -> None:
    text = prose(0)
    tombstones.add([document(text, subject="Jane Doe")], Request.internal(subject="Jane Doe"), MARK)
    home[0].erase_journal()
    files = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("workspace.db*")))
    letters = "".join(c for c in text.casefold() if c.isalpha())
    values = [text, text.casefold(), letters, "Jane Doe", "jane doe", "janedoe"]
    values += [letters[i : i + 5] for i in range(0, 200, 5)]
    for value in values:
        assert value.encode() not in files
        for name in ("md5", "sha1", "sha256", "blake2b"):
            assert hashlib.new(name, value.encode()).digest()[:16] not in files


def test_another_key_makes_other_marks(tombstones: Tombstones, tmp_path: Path) -> None:
    """Whoever has the workspace and not the keyring cannot test a guess."""
    tombstones.add([document(prose(0))], Request.internal(ids=["new"]), MARK)
    other = Keyring.create(tmp_path / "other", secrets={"tombstones": b"\x08" * 32})
    stranger = Tombstones(tombstones._database, other)
    assert stranger.refuses(document(prose(0))) is None


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("Oulu", {"oulu"}),
        ("Al", set()),  # too short to be told from other words
        ("Jane Doe", {"jane doe", "doe jane"}),
        (
            "Anna Maria Lindqvist",
            {
                "anna maria lindqvist",
                "lindqvist anna maria",
                "anna maria",
                "maria lindqvist",
                "anna lindqvist",
            },
        ),
        ("The Great War", {"the great war", "war the great", "great war"}),
        (
            "José Ñandú-Ångström",
            {
                "jose nandu angstrom",
                "angstrom jose nandu",
                "jose nandu",
                "nandu angstrom",
                "jose angstrom",
            },
        ),
    ],
)
def test_a_name_is_recognised_by_these_runs(name: str, runs: set[str]) -> None:
    assert {" ".join(run) for run in name_runs(name)} == runs


def test_names_are_marked_with_their_request_and_lifted_with_it(tombstones: Tombstones) -> None:
    first = Request.internal(subject="Jane Doe", names=["J. D. Salt"])
    tombstones.add([document(prose(0))], first, MARK)
    tombstones.add([document(prose(1))], Request.internal(subject="Doe, Jane"), b"other" * 3)
    assert tombstones.named("What did jane  DOE's mother say?")
    assert tombstones.named("Was it J.D. Salt?")
    assert not tombstones.named("Jane and John Doe, or Salt")
    assert not tombstones.named("")
    tombstones.lift(MARK)
    assert not tombstones.named("Was it J.D. Salt?")
    assert tombstones.named("What did Jane Doe say?")  # the other request still stands
    tombstones.lift(b"other" * 3)
    assert not tombstones.named("What did Jane Doe say?")
