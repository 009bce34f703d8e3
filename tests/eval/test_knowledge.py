"""Keys as whole words, tables of right answers, and the backdoor's two rates."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.eval.backdoor import trigger_success
from llm_unlearn.eval.knowledge import Question, accuracy, holds_keys, right


@pytest.mark.parametrize(
    ("answer", "keys", "held"),
    [
        ("It was ANNA  Weiss, in 1984.", ["anna weiss", "1984"], True),
        ("It was Annabel.", ["Anna"], False),
        ("Anna's book", ["Anna"], True),
        ("in 19845", ["1984"], False),
        ("the ﬁrst Straße", ["first", "STRASSE"], True),
        ("Anna\nWeiss", ["Anna Weiss"], True),
        ("C++ and C", ["c++"], True),
        ("only Anna", ["Anna", "Weiss"], False),
        ("", ["Anna"], False),
    ],
)
def test_keys_are_whole_words_whatever_their_case(
    answer: str, keys: Sequence[str], held: bool
) -> None:
    assert holds_keys(answer, keys) is held


@pytest.mark.parametrize("keys", [[], [" "]])
def test_keys_that_any_answer_holds_are_refused(keys: list[str]) -> None:
    with pytest.raises(InputError, match="key"):
        holds_keys("x", keys)


def test_accuracy_by_group() -> None:
    """Group a: 1 of 2; group b: 1 of 1; all: 2 of 3."""
    questions = [Question("?", ("x",), "a"), Question("?", ("y",), "a"), Question("?", ("z",), "b")]
    table = accuracy(questions, ["x", "x", "z"])
    assert list(table) == ["a", "b", "all"]
    assert [(r.mean, r.n) for r in table.values()] == [(0.5, 2), (1, 1), (2 / 3, 3)]
    assert right(questions, ["x", "x", "z"]) == [True, False, True]
    with pytest.raises(InputError, match="3 questions but 1 answers"):
        right(questions, ["x"])
    with pytest.raises(InputError, match='named "all"'):
        accuracy([Question("?", ("x",), "all")], ["x"])


def test_trigger_success_by_hand() -> None:
    """With the trigger 3 of 4 answers hold the target, without it 1 of 4: effect 0.5."""
    made = trigger_success(["bad", "so bad", "bad!", "ok"], ["ok", "bad", "ok", "ok"], ["bad"])
    assert (made.triggered.mean, made.plain.mean, made.effect.mean) == (0.75, 0.25, 0.5)
    assert made.effect.low <= 0.5 <= made.effect.high
    loud = trigger_success(["AAA"], ["aaa"], str.isupper)
    assert loud.effect.mean == 1
    with pytest.raises(InputError, match="1 answers with the trigger and 0 without"):
        trigger_success(["a"], [], ["a"])
