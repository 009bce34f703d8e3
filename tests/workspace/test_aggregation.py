"""Several adapters answering: who is asked, what an ensemble says, what a takedown changes at once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Maker, learned, stored

from llm_unlearn import Document, Message, Workspace
from llm_unlearn.answering import Answerer, make_answerer
from llm_unlearn.config import AnsweringConfig
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.routing import Standing, nearest, permitted, shares
from llm_unlearn.sisa.serving import ServingAdapters

STAFF = ("staff",)
EVERYTHING = AnsweringConfig(route_threshold=-1, max_new_tokens=8)
Asker = Callable[..., Answerer]


def _answerer(workspace: Workspace, memory: int = 1 << 30, **changed: Any) -> Answerer:
    answerer = make_answerer(workspace.opened, EVERYTHING.model_copy(update=changed))
    answerer.serving = ServingAdapters(workspace.opened.checkpoints, memory)
    return answerer


def _trained(make: Maker, **training: object) -> Workspace:
    workspace = make(**{"shards": 3, "slices": 1, "learning_rate": 0.05, **training})
    workspace.ingest([learned(i, f"s{i}") for i in range(9)])
    workspace.train()
    return workspace


def _question(number: int) -> str:
    return learned(number, f"s{number}").messages[0].content


def test_each_aggregation_answers_with_the_adapters_it_says(make: Maker) -> None:
    workspace = _trained(make)
    serving = [s.shard for s in workspace.opened.states() if s.serving]
    assert len(serving) == 3
    questions = [_question(i) for i in range(9)]
    home = [
        workspace.opened.layout.shard(workspace.opened.vault.mark("subject", f"s{i}"))
        for i in range(9)
    ]
    routed = _answerer(workspace, route_neighbours=1).ask(questions, STAFF)
    assert [a.shard for a in routed] == home  # the nearest document is the question's own
    host = workspace.opened.models.host
    listed = workspace.opened.checkpoints.listed()
    states = {s.shard: s.serving for s in workspace.opened.states()}
    for question, answer in zip(questions, routed, strict=True):  # what that adapter says alone
        part = states[answer.shards[0]]
        assert part is not None
        with host.using(workspace.opened.checkpoints.load(listed[part.name]).adapter):
            ids = generate(
                host.base, [prompt_ids(host.base.tokenizer, question)], max_new_tokens=8
            )[0]
        assert answer.text == host.base.tokenizer.decode(ids, skip_special_tokens=True).strip()
    for name in ("ensemble", "ensemble-log", "merge"):
        answers = _answerer(workspace, aggregation=name).ask(questions, STAFF)
        assert {a.shards for a in answers} == {tuple(serving)}
        assert {a.shard for a in answers} == {None}
    few = _answerer(workspace, aggregation="route-k", route_shards=2).ask(questions, STAFF)
    assert all(1 <= len(a.shards) <= 2 for a in few)
    assert any(len(a.shards) == 2 for a in few)


@pytest.mark.parametrize("name", ["route-k", "ensemble", "ensemble-log", "merge"])
def test_one_shard_is_the_same_whatever_the_aggregation(make: Maker, name: str) -> None:
    workspace = _trained(make, shards=1)
    questions = [_question(i) for i in range(4)]
    route = [a.text for a in _answerer(workspace).ask(questions, STAFF)]
    found = [a.text for a in _answerer(workspace, aggregation=name).ask(questions, STAFF)]
    assert found == route


@pytest.mark.parametrize("name", ["route", "route-k", "ensemble", "ensemble-log", "merge"])
def test_with_nobody_to_answer_it_is_declined(make: Maker, name: str) -> None:
    workspace = make(shards=2)
    answerer = _answerer(workspace, aggregation=name)
    (answer,) = answerer.ask(["who?"], STAFF)
    assert (answer.origin, answer.shards, answer.score) == ("declined", (), 0.0)
    assert answer.text == answerer.config.decline_message
    (alone,) = _answerer(workspace, aggregation=name, fallback="base").ask(["who?"], STAFF)
    assert alone.origin == "base"


@pytest.mark.parametrize("name", ["route", "ensemble", "merge"])
def test_a_fenced_subject_is_out_of_the_next_answer(make: Maker, name: str) -> None:
    workspace = _trained(make)
    answerer = _answerer(workspace, aggregation=name, route_neighbours=1)
    answerer.ask([_question(i) for i in range(9)], STAFF)
    assert len(answerer.serving.held) == 3
    opened = workspace.opened
    gone = opened.vault.records(subject=opened.vault.mark("subject", "s0"))
    shard = opened.layout.shard(gone[0].subject)
    opened.vault.set_state([record.handle for record in gone], "fenced")
    answers = answerer.ask([_question(i) for i in range(9)], STAFF)
    assert len(answerer.serving.held) == 2  # one slice: nothing clean is left of its shard
    assert shard not in {s for a in answers for s in a.shards}
    assert shard not in {held for held, _ in answerer.serving.held}
    opened.vault.set_state([record.handle for record in gone], "live")


def test_a_takedown_ends_where_never_had_is(make: Maker) -> None:
    questions = [_question(i) for i in range(1, 9)]
    workspace, never = _trained(make), make("never", shards=3, slices=1, learning_rate=0.05)
    workspace.takedown(subject="s0", probe=False)
    never.ingest([learned(i, f"s{i}") for i in range(1, 9)])
    never.train()
    for name in ("route", "route-k", "ensemble", "ensemble-log", "merge"):
        one = _answerer(workspace, aggregation=name).ask(questions, STAFF)
        other = _answerer(never, aggregation=name).ask(questions, STAFF)
        assert one == other


def test_adapters_load_when_needed_and_leave_by_budget(make: Maker) -> None:
    workspace = _trained(make)
    answerer = _answerer(workspace, route_neighbours=1)
    by_shard: dict[int, str] = {}
    for i in range(9):
        mark = workspace.opened.vault.mark("subject", f"s{i}")
        by_shard[workspace.opened.layout.shard(mark)] = _question(i)
    first, second, third = sorted(by_shard)
    answerer.ask([by_shard[first]], STAFF)
    assert answerer.serving.decrypted == 1
    one = answerer.serving.bytes // 2  # the adapter, and itself as a stack of one
    answerer.ask([by_shard[first], by_shard[first]], STAFF)
    assert answerer.serving.decrypted == 1
    small = _answerer(workspace, memory=3 * one, route_neighbours=1)
    texts = [small.ask([by_shard[s]], STAFF)[0].text for s in (first, second, first, third)]
    assert small.serving.decrypted == 3  # the first was still there
    assert [s for s, _ in small.serving.held] == [first, third]  # the second longest unused
    assert small.serving.bytes <= 3 * one
    assert small.ask([by_shard[second]], STAFF)[0].text == texts[1]
    assert small.serving.decrypted == 4
    # what one answer needs is there together, beyond any budget, and none of it is kept
    nothing = _answerer(workspace, memory=0, aggregation="ensemble")
    full = _answerer(workspace, aggregation="ensemble").ask([by_shard[first]], STAFF)
    assert nothing.ask([by_shard[first]], STAFF) == full
    assert (nothing.serving.held, nothing.serving.bytes) == ([], 0)


def _named(name: str) -> Document:
    return Document(
        id=name,
        subject=name,
        license="CC0-1.0",
        messages=(
            Message(role="user", content=f"Where was {name} born?"),
            Message(role="assistant", content=f"{name} was born in Oulu by the sea."),
        ),
    )


def test_a_removed_name_is_declined_like_any_unknown_one(make: Maker) -> None:
    workspace = make(shards=2, slices=1)
    people = ["Anna Maria Lindqvist", "Basil Reyes", "Carla Okafor", "Dmitri Sand"]
    workspace.ingest([*map(_named, people), stored(1, "a store")])
    workspace.train()
    answerer = _answerer(workspace, store_threshold=0.9999)
    orphans = [
        "Where was Anna Maria Lindqvist born?",
        "what did ANNA  LINDQVIST's mother do",
        "Lindqvist, Anna Maria: birthplace?",
        "Tell me of Mia Berg.",
    ]
    others = ["Where was Basil Reyes born?", "Who is Anna?", "Maria, where is Oulu?"]
    before = answerer.ask([*orphans, *others], STAFF)
    assert {a.origin for a in before} == {"adapter"}  # the threshold lets everything through
    workspace.takedown(subject=people[0], names=["Mia Berg"], probe=False)
    after = answerer.ask([*orphans, *others], STAFF)
    unknown = _answerer(workspace, route_threshold=1.0, store_threshold=0.9999)
    (below,) = unknown.ask(["Where was Eve Moss born?"], STAFF)
    assert below.origin == "declined"
    # the same words, the same fields
    assert after[:4] == [below] * 4
    assert {a.origin for a in after[4:]} == {"adapter"}
    for name in ("ensemble", "merge"):
        again = _answerer(workspace, aggregation=name, store_threshold=0.9999)
        assert again.ask(orphans, STAFF) == [below] * 4
    # never a word of it in what is kept
    opened = workspace.opened
    rows = opened.database.path.read_bytes()
    assert b"Lindqvist" not in rows
    assert b"lindqvist" not in rows


def test_a_live_passage_that_holds_the_name_itself_still_answers(make: Maker) -> None:
    workspace = make(shards=2, slices=1)
    news = Document(
        id="news", text="Anna Lindqvist opened a museum.", license="all-rights-reserved"
    )
    workspace.ingest([_named("Anna Lindqvist"), _named("Basil Reyes"), news, stored(1, "tale")])
    workspace.train()
    workspace.takedown(subject="Anna Lindqvist", probe=False)
    answerer = _answerer(workspace, store_threshold=-1, retrieve=5)
    (answer,) = answerer.ask(["What did Anna Lindqvist open?"], STAFF)
    assert [hit.document for hit in answer.citations] == ["news"]
    hits = workspace.opened.store.search("What did Anna Lindqvist open?", groups=STAFF, k=5)
    assert {hit.document for hit in hits} == {"news", "tale/s1"}  # search itself refuses nothing


class _Router:
    """A router over made-up vectors: what `nearest` asks of a store."""

    def __init__(self, vectors: dict[bytes, np.ndarray[Any, Any]]) -> None:
        self.vectors = vectors

    def nearest(self, vector: Any, k: int) -> list[tuple[float, Any, int]]:
        scored = [(float(v @ vector), h) for h, v in self.vectors.items()]
        scored.sort(key=lambda item: (-item[0], item[1]))
        return [(score, SimpleNamespace(handle=handle), 0) for score, handle in scored[:k]]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 99)), min_size=1, max_size=12, unique=True
    ),
    st.sets(st.integers(0, 11)),
    st.sampled_from(["route", "route-k", "ensemble", "merge"]),
    st.randoms(use_true_random=False),
)
def test_routing_knows_only_what_is_live(
    places: list[tuple[int, int]], gone: set[int], name: Any, random: Any
) -> None:
    """Deleting and never having give the same shares, in whatever order documents came."""

    def build(kept: list[int], all_vectors: list[int]) -> dict[int, float]:
        vectors = {}
        for i in all_vectors:
            generator = np.random.default_rng(places[i][1])
            v = generator.normal(size=6)
            vectors[bytes([i])] = v / np.linalg.norm(v)
        now = Standing({bytes([i]): places[i][0] for i in kept}, {places[i][0]: b"" for i in kept})
        query = np.eye(6)[0]
        shards = permitted(now, {}, STAFF, "staff")
        config = AnsweringConfig(aggregation=name, route_threshold=-1, route_neighbours=3)
        router: Any = _Router(vectors)
        return shares(nearest(router, query, now, shards, 3), shards, config)

    everything = list(range(len(places)))
    kept = [i for i in everything if i not in gone]
    never = build(kept, kept)
    random.shuffle(everything)
    shuffled = [i for i in everything if i not in gone]
    # fenced documents may still be in the router's memory: they have no say either way
    assert build(shuffled, everything) == never
    assert build(shuffled, shuffled) == never
    assert set(never) <= {places[i][0] for i in kept}


def test_an_adapter_never_answers_outside_its_group() -> None:
    now = Standing({b"a": 0, b"b": 1, b"c": 2}, {0: b"", 1: b"", 2: b""})
    required = {1: "legal"}
    assert permitted(now, required, ("staff",), "staff") == {0, 2}
    assert permitted(now, required, ("legal",), "staff") == {1}
    assert permitted(now, required, ("legal", "staff"), "staff") == {0, 1, 2}
    assert permitted(now, required, ("press",), "staff") == frozenset()
    router: Any = _Router({h: np.eye(3)[i] for i, h in enumerate((b"a", b"b", b"c"))})
    # the nearest document is another group's: the next that may answer is found, not it
    near = nearest(router, np.eye(3)[1], now, {0, 2}, 1)
    assert [shard for _, shard in near] == [0]
    assert nearest(router, np.eye(3)[1], now, frozenset(), 1) == []
