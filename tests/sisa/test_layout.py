"""Placement is a pure function of the document: adding or removing one moves no other."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.layout import Layout, Slice, slices

KEY = bytes(range(32))
LAYOUT = Layout(KEY, shards=3, slices=2)
RECIPE = b"r" * 32


def _mark(value: object) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()[:16]


def _record(number: int, subject: int, generation: int = 1, content: int | None = None) -> Record:
    return Record(
        handle=_mark(("id", number)),
        subject=_mark(("subject", subject)),
        source=_mark("source"),
        content=_mark(("content", number if content is None else content)),
        fate="corpus",
        state="live",
        generation=generation,
        slot=number,
    )


records = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 8), st.integers(1, 3)),
    max_size=30,
    unique_by=lambda item: item[0],
).map(lambda items: [_record(n, s, g) for n, s, g in items])


def _places(laid: dict[int, list[Slice]]) -> dict[bytes, tuple[str, int]]:
    return {
        record.handle: (part.name, position)
        for parts in laid.values()
        for part in parts
        for position, record in enumerate(part.records)
    }


@given(records, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(found: list[Record], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert slices(LAYOUT, RECIPE, found) == slices(LAYOUT, RECIPE, shuffled)


@given(records, st.integers(0, 8))
def test_removing_a_subject_changes_its_own_slices_on_only(found: list[Record], gone: int) -> None:
    subject = _mark(("subject", gone))
    full = slices(LAYOUT, RECIPE, found)
    less = slices(LAYOUT, RECIPE, [r for r in found if r.subject != subject])
    shard = LAYOUT.shard(subject)
    touched = sorted(p.stage for p in full[shard] if any(r.subject == subject for r in p.records))
    for number, parts in full.items():
        if number != shard or not touched:
            assert less[number] == parts
            continue
        before = [part for part in parts if part.stage < touched[0]]
        assert less[number][: len(before)] == before
        after = [part.inputs for part in parts if part.stage >= touched[0]]
        assert not set(after) & {part.inputs for part in less[number]}


@given(records)
def test_a_later_generation_changes_no_earlier_slice(found: list[Record]) -> None:
    old = slices(LAYOUT, RECIPE, [r for r in found if r.generation < 3])
    new = slices(LAYOUT, RECIPE, found)
    for number, parts in old.items():
        assert new[number][: len(parts)] == parts


@given(records)
def test_a_subject_has_one_shard_and_one_slice_a_generation(found: list[Record]) -> None:
    laid = slices(LAYOUT, RECIPE, found)
    homes: dict[tuple[bytes, int], set[str]] = {}
    for parts in laid.values():
        for part in parts:
            assert part.records
            for record in part.records:
                homes.setdefault((record.subject, record.generation), set()).add(part.name)
    assert all(len(names) == 1 for names in homes.values())
    assert sum(len(p.records) for parts in laid.values() for p in parts) == len(found)


def test_twins_train_once_within_a_subject_and_twice_across() -> None:
    twins = [_record(1, 1, content=7), _record(2, 1, content=7), _record(3, 2, content=7)]
    chosen = set(_places(dict(slices(LAYOUT, RECIPE, twins))))
    smaller = min(twins[0].handle, twins[1].handle)
    assert chosen == {smaller, twins[2].handle}
    survivors = [r for r in twins if r.handle != smaller]
    assert set(_places(dict(slices(LAYOUT, RECIPE, survivors)))) == {r.handle for r in survivors}


def test_the_recipe_enters_every_chain() -> None:
    found = [_record(n, n % 3) for n in range(9)]
    mine, other = slices(LAYOUT, RECIPE, found), slices(LAYOUT, b"s" * 32, found)
    for number, parts in mine.items():
        assert not {p.inputs for p in parts} & {p.inputs for p in other[number]}
