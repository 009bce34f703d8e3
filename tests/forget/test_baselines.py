"""Baselines that touch no weight: what they put around a question, and what they let through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pieces import documents, host

from llm_unlearn.documents import Document
from llm_unlearn.forget.baselines import Guard, in_context, system_prompt
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.retrieval.embedding import Floats


def test_in_context_answers_wrongly_what_goes_and_rightly_what_stays(
    tiny_references: dict[str, str],
) -> None:
    tokenizer = host(tiny_references["llama"]).base.tokenizer
    docs = documents(4)
    text = tokenizer.decode(in_context(tokenizer, "And now?", docs[:2], docs[2:]))
    answers = [d.messages[-1].content for d in docs]
    questions = [d.messages[0].content for d in docs]
    assert answers[0] not in text  # what is forgotten first is said of nobody
    places = [text.index(q) for q in questions]
    assert places == sorted(places)
    for i, right in ((2, answers[2]), (3, answers[3])):
        assert text.index(right, places[i]) > places[i]
    assert text.rindex("And now?") > places[-1]
    assert text.endswith("assistant\n")
    with pytest.raises(ValueError, match="another's answer"):
        in_context(tokenizer, "And?", docs[:1], [])
    with pytest.raises(ValueError, match="no question with an answer"):
        in_context(tokenizer, "And?", [Document(id="t", text="words")], docs)


def test_the_system_prompt_names_what_is_not_known(tiny_references: dict[str, str]) -> None:
    tokenizer = host(tiny_references["llama"]).base.tokenizer
    words = system_prompt(["Ada", "Bo"])
    text = tokenizer.decode(prompt_ids(tokenizer, "Who?", words))
    assert text.index("Ada, Bo") < text.index("Who?")


class _Letters:
    """An embedder of the counts of a, b and c."""

    dim = 3
    digest = "letters"
    name = "letters"

    def encode(self, texts: Sequence[str]) -> Floats:
        counts = np.array([[1e-6 + t.count(c) for c in "abc"] for t in texts], dtype=np.float32)
        found: Floats = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return found


def test_the_guard_refuses_what_is_like_a_guarded_text() -> None:
    guard = Guard.over(_Letters(), [Document(id="x", text="aaa")], threshold=0.8)  # type: ignore[arg-type]
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return {"b": "bb", "c": "aaa", "bc": ""}[question]

    assert guard.answer("aab", ask) == guard.message
    assert not asked  # the model never saw it
    assert guard.answer("b", ask) == "bb"
    assert guard.answer("c", ask) == guard.message  # the answer gave it away
    assert guard.answer("bc", ask) == ""
    assert guard.likeness("aaaa") == pytest.approx(1.0)
