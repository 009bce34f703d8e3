"""Both benches on tiny models: every line is there, and its numbers are what they say."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from small import tiny_config

from llm_unlearn.demo.chat_attacks import name_of, text_of
from llm_unlearn.errors import InputError
from llm_unlearn.serve import bench, guard_bench, guard_texts
from llm_unlearn.serve.guard import without_instructions


def _settings(references: dict[str, str]) -> dict[str, object]:
    plain = tiny_config(references).model_dump(include={"model", "embedder", "training"})
    return {**plain, "retrieval": {"chunk_tokens": 64}}


def test_server_and_loop_answer_the_same_questions(tiny_references: dict[str, str]) -> None:
    found = bench.run(clients=2, each=1, tokens=6, rounds=2, settings=_settings(tiny_references))
    assert {(side.name, side.clients) for side in found.sides} == {
        (name, clients) for name in ("loop", "server") for clients in (1, 2)
    }
    for side in found.sides:
        assert side.answers == 2 * side.clients
        median, least, most = side.tokens_per_second
        assert 0 < least <= median <= most
        assert 0 < side.first_token[1] <= side.first_token[0] <= side.first_token[2]
    by = {side.name: side.tokens_per_second[0] for side in found.sides if side.clients == 2}
    assert found.ratio(2) == pytest.approx(by["server"] / by["loop"])


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(InputError, match="no setting 'verbatm'"):
        list(guard_bench.run(only=["none", "verbatm"]))


def test_settings_of_the_guard_are_asked_what_they_may_change(
    tiny_references: dict[str, str],
) -> None:
    """A random model gives nothing back; what is refused is so whatever it says."""
    plain = _settings(tiny_references)
    only = ["tombstones", "none", "all"]
    found = list(guard_bench.run(questions=2, tokens=6, clients=2, only=only, settings=plain))
    assert [setting.name for setting in found] == ["none", "tombstones", "all"]
    by = {setting.name: setting for setting in found}
    for name, setting in by.items():
        asks = guard_bench.SETTINGS[name][1]
        said = [n for n in ("leaks", "orders", "brought") if getattr(setting, n)]
        assert sorted(said) == sorted(asks)
        assert setting.seconds_per_token > 0
        assert {kind: e.n for kind, e in setting.refused.items()} == {
            **dict.fromkeys(("about a text", "general", "like a dump"), 2),
            "all of them": 6,
        }
        assert setting.refused["all of them"].mean == 0  # the first two like dumps are not known
        assert all(0 <= e.low <= e.mean <= e.high <= 1 for e in setting.leaks.values())
    for name in ("tombstones", "all"):
        brought = by[name].brought
        assert brought["removed"].mean == 1
        assert brought["another text"].mean == 0
    assert all(e.mean == 0 for e in by["none"].brought.values())


def _chat(said: Callable[[str], str], origin: str = "store") -> guard_bench.Chat:
    """A chat of which each answer is known."""

    def answer(request: httpx.Request) -> httpx.Response:
        question = json.loads(request.content)["messages"][-1]["content"]
        body = {
            "choices": [{"message": {"content": said(question)}}],
            "usage": {"completion_tokens": 5},
            "llm_unlearn": {"origin": origin, "ended": None},
        }
        return httpx.Response(200, json=body)

    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://bench")
    return guard_bench.Chat(client, 40, 2)


def test_the_probes_of_the_guard_tell_a_parrot_from_a_refusal() -> None:
    given = guard_texts.texts(3)
    people = {name_of(fact): text_of(fact) for fact in given.protected}

    def parrot(question: str) -> str:
        return next((text for name, text in people.items() if name in question), "")

    told, silent = _chat(parrot), _chat(lambda _: "I cannot say.", "declined")
    assert {e.mean for e in guard_bench.leakage(told, given).values()} == {1.0}
    assert {e.mean for e in guard_bench.leakage(silent, given).values()} == {0.0}
    for chat, refused in ((told, 0.0), (silent, 1.0)):
        rates, right = guard_bench.harmless(chat, given)
        assert {e.mean for e in rates.values()} == {refused}
        assert right.mean == 1 - refused


def test_orders_count_by_their_wording() -> None:
    given = guard_texts.texts(3)
    kind, facts = next(iter(given.attacked.items()))
    names = [name_of(fact) for fact in facts[:2]]
    obedient = _chat(lambda q: "Zebra." if any(name in q for name in names) else "A stone.")
    clean = _chat(lambda _: "A stone.")
    found = guard_bench.followed(obedient, clean, given)
    assert {name: e.mean for name, e in found.items()} == {
        **dict.fromkeys(guard_texts.ORDERS, 0.0),
        kind: 2 / 3,
    }


def test_the_texts_of_the_guard() -> None:
    """Nobody is in two roles; an order stands between two questions; known ones are known."""
    given = guard_texts.texts(guard_texts.MOST)
    ids = [document.id for document in (*given.documents, *given.planted)]
    assert len(set(ids)) == len(ids) == guard_texts.MOST * (2 + 2 * len(guard_texts.ORDERS))
    for kind, order in guard_texts.ORDERS.items():
        assert (without_instructions(order) == "") == kind.startswith("known")
    text = text_of(given.removed[0])
    pairs = list(zip(text.split(), guard_texts.changed(text).split(), strict=True))
    assert sum(a != b for a, b in pairs) == len(range(5, len(pairs), 10))
