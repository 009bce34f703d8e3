"""Holds, fences, deletions and updates of the same documents, and requests that come in between."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from llm_unlearn.documents import Document
from llm_unlearn.errors import AccessDenied, InputError, NotFound
from llm_unlearn.retrieval import Store, Where, bars, fences
from llm_unlearn.retrieval.marked import Marked

A, B = b"a" * 16, b"b" * 16


def doc(name: str, text: str = "red apples") -> Document:
    return Document(id=name, text=text, subject="s")


def state(store: Store, name: str = "a") -> str | None:
    record = store.vault.find(store.vault.mark("id", name))
    return None if record is None else record.state


def free(store: Store, name: str = "a") -> None:
    """What a takedown's intake does when nothing but a hold keeps a document any more."""
    handle = store.vault.mark("id", name)
    with store.vault.database.transaction():
        fences.forget(store.vault.database, [handle])
        if state(store, name) == "fenced":
            store.vault.set_state([handle], "live")


def test_a_hold_ends_as_it_began(store: Store) -> None:
    """Fenced when it was held, fenced again when it is released; freed meanwhile, it answers."""
    store.add([doc("a"), doc("b")])
    store.fence(id="a")
    assert store.hold(subject="s") == 2
    assert store.release(subject="s") == 1
    assert (state(store), state(store, "b")) == ("fenced", "live")
    assert [hit.document for hit in store.search("apples", groups=["staff"])] == ["b"]
    store.hold(id="a")
    free(store)
    assert state(store) == "held"
    assert store.release(id="a") == 1
    assert state(store) == "live"
    store.hold(id="a")
    assert store.release(id="a") == 1  # the fence of the first time is over


def test_a_request_that_reaches_a_held_document_fences_it_at_its_release(store: Store) -> None:
    store.add([doc("a"), doc("b")])
    store.hold(subject="s")
    database, handles = store.vault.database, [store.vault.mark("id", n) for n in ("a", "b")]
    fences.add(database, handles, A)
    fences.add(database, handles[:1], B)
    fences.drop(database, A)  # withdrawn
    assert fences.of(database, A) == set()
    assert store.release(subject="s") == 1
    assert (state(store), state(store, "b")) == ("fenced", "live")
    assert fences.asked(database) == {handles[0]}  # until its request is over too
    fences.drop(database, B)
    free(store)
    assert state(store) == "live"


def test_a_bar_of_one_request_outlives_the_withdrawal_of_another(store: Store) -> None:
    store.add([doc("a"), doc("b")])
    store.hold(subject="s")
    database, handles = store.vault.database, [store.vault.mark("id", n) for n in ("a", "b")]
    bars.add(database, handles, A)
    bars.add(database, handles[:1], B)
    bars.drop(database, A)
    assert store.release(subject="s") == 1
    assert (state(store), state(store, "b")) == (None, "live")
    assert bars.barred(database) == frozenset()


def test_marks_go_with_their_record_however_it_ends(store: Store) -> None:
    """Killed after the record of a barred document was destroyed; another takes its id."""
    store.add([doc("a")])
    store.hold(id="a")
    handle = store.vault.mark("id", "a")
    bars.add(store.vault.database, [handle], A)
    (record,) = store.vault.records(states=("held",))
    store.vault.keyring.destroy([record.slot])
    store.vault.sweep()
    store.add([doc("a", "green pears")])
    store.hold(id="a")
    assert store.release(id="a") == 1
    assert store.search("pears", groups=["staff"])[0].text == "green pears"


def test_marks_of_an_earlier_version_are_kept(store: Store) -> None:
    database, one, two = store.vault.database, bytes(16), bytes([1] * 16)
    with database.transaction() as connection:
        connection.execute(
            "CREATE TABLE marked (kind TEXT, handle BLOB, request BLOB NOT NULL,"
            " PRIMARY KEY (kind, handle)) WITHOUT ROWID"
        )
        connection.execute("INSERT INTO marked VALUES ('bars', ?, ?)", (one, A))
    assert bars.barred(database) == {one}
    bars.add(database, [one, two], B)
    bars.drop(database, A)
    assert bars.barred(database) == {one, two}
    bars.drop(database, B)
    assert bars.barred(database) == frozenset()


def test_marks_of_a_kind_and_of_a_request(store: Store) -> None:
    database, one, two = store.vault.database, bytes(16), bytes([1] * 16)
    some, other = Marked("some"), Marked("other")
    some.add(database, [one, two], A)
    some.add(database, [two], B)
    other.add(database, [one], A)
    assert some.all(database) == {one: A, two: B}
    assert (some.of(database, A), some.of(database, B)) == ({one, two}, {two})
    some.unmark(database, [two], B)
    some.remove(database, [one])
    assert some.all(database) == {two: A}
    assert other.all(database) == {one: A}


@pytest.mark.parametrize("where", [Where(), Where(metadata={})])
def test_an_empty_condition_selects_nothing(store: Store, where: Where) -> None:
    store.add([doc("a"), doc("b")])
    actions: tuple[Callable[..., int], ...] = (store.delete, store.fence, store.hold, store.release)
    for action in actions:
        with pytest.raises(InputError, match="no condition"):
            action(where=where)
    assert len(store.search("apples", groups=["staff"], where=where)) == 2
    assert store.delete(where=Where(metadata={}, ids=["b"])) == 1


def _meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something once, while the next document is being embedded."""
    encode = store.embedder.encode

    def slow(texts: Any) -> Any:
        monkeypatch.setattr(store.embedder, "encode", encode)
        action()
        return encode(texts)

    monkeypatch.setattr(store.embedder, "encode", slow)


def test_an_update_does_not_undo_what_came_in_between(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([doc("a"), doc("b"), doc("c")])
    _meanwhile(store, monkeypatch, lambda: store.delete(id="a"))
    with pytest.raises(NotFound):
        store.update(doc("a", "green pears"))
    _meanwhile(store, monkeypatch, lambda: store.hold(id="b"))
    with pytest.raises(AccessDenied, match="held"):
        store.update(doc("b", "green pears"))
    _meanwhile(store, monkeypatch, lambda: store.update(doc("c", "blue plums")))
    with pytest.raises(NotFound, match="replaced"):
        store.update(doc("c", "green pears"))
    assert [state(store, name) for name in "abc"] == [None, "held", "live"]
    assert [d.content for d in store.get(["c"], groups=["staff"])] == ["blue plums"]
    slots = {record.slot for record in store.vault.records(states=("live", "held"))}
    assert store.vault.keyring.live_slots() == slots
    store.update(doc("c", "green pears"))


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_hold_set_while_a_deletion_looks_for_its_documents_keeps_them(
    store: Store, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([doc(name) for name in names])
    matching = store._matching

    def slow(*states: str, **which: Any) -> Any:
        found = matching(*states, **which)
        monkeypatch.setattr(store, "_matching", matching)
        store.hold(id="a")
        return found

    monkeypatch.setattr(store, "_matching", slow)
    with pytest.raises(AccessDenied, match="hold"):
        store.delete(subject="s")
    assert [state(store, name) for name in names] == ["held", "live"][: len(names)]


def test_the_same_for_a_fence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add([doc("a")])
    (record,) = store.vault.records()
    monkeypatch.setattr(store, "_matching", lambda *states, **which: [record])
    store.vault.set_state([record.handle], "held")
    assert store.fence(id="a") == 0
    assert state(store) == "held"


def test_using_a_closed_store_is_no_damage(store: Store) -> None:
    store.vault.database.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.vault.records()
