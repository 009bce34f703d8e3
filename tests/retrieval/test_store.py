"""The store as its users see it: adding, searching, access, deletion, holds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_unlearn.documents import Document
from llm_unlearn.errors import (
    AccessDenied,
    Damaged,
    InputError,
    KeysMissing,
    NotFound,
    RecipeMismatch,
    WorkspaceLocked,
    WorkspaceMissing,
    WorkspaceReadOnly,
)
from llm_unlearn.retrieval import Store, StoreSettings, Where
from llm_unlearn.retrieval.vault import NewRecord

STAFF = ["staff"]


def doc(name: str, text: str, **fields: Any) -> Document:
    return Document(id=name, text=text, **fields)


def test_a_hit_says_what_where_and_how_near(store: Store) -> None:
    text = "The lighthouse keeper slept. A heron stood by the quiet harbour all night."
    store.add([doc("a", text, subject="keeper", source="http://x", license="CC0"), doc("b", "Zq")])
    hit = store.search("a heron stood by the quiet harbour", groups=STAFF, k=1)[0]
    assert (hit.document, hit.subject, hit.source, hit.license) == (
        "a",
        "keeper",
        "http://x",
        "CC0",
    )
    assert text[hit.start : hit.end] == hit.text
    assert "heron" in hit.text
    vectors = store.embedder.encode([hit.text, "a heron stood by the quiet harbour"])
    rows = vectors.astype(np.float64)
    assert hit.score == pytest.approx(float(rows[0] @ rows[1]), abs=1e-12)
    assert hit.handle == store.vault.mark("id", "a")
    assert hit.subject_mark == store.vault.mark("subject", "keeper")


def test_callers_must_name_their_groups(store: Store) -> None:
    store.add([doc("open", "red apples"), doc("closed", "red apples too", acl=("board", "legal"))])
    with pytest.raises(AccessDenied):
        store.search("red", groups=[])
    with pytest.raises(InputError):
        store.search("red", groups="staff")

    def seen(*groups: str) -> set[str]:
        return {hit.document for hit in store.search("red apples", groups=groups, k=10)}

    assert seen("staff") == {"open"}
    assert seen("legal") == {"closed"}
    assert seen("staff", "board") == {"open", "closed"}
    assert seen("nobody") == set()


def test_filters_apply_inside_the_search(store: Store) -> None:
    store.add(
        doc(f"d{i}", f"red apples number {i}", subject=f"s{i % 2}", tags=("old",) if i < 3 else ())
        for i in range(200)
    )
    store.add([doc("odd", "blue whales", subject="s9", source="sea", license="CC0")])

    def names(**filters: Any) -> list[str]:
        where = Where(**filters)
        return [hit.document for hit in store.search("red", groups=STAFF, k=300, where=where)]

    assert len(names()) == 201
    assert names(subjects=["s9"]) == names(sources=["sea"]) == names(licenses=["CC0"]) == ["odd"]
    assert sorted(names(tags=["old", "new"])) == ["d0", "d1", "d2"]
    assert names(subjects=[]) == []
    assert sorted(names(subjects=["S1 "], tags=["old"])) == ["d1"]
    assert sorted(names(ids=["d7", "odd", "none"])) == ["d7", "odd"]
    assert names(ids=["d7", "odd"], subjects=["s9"]) == ["odd"]
    with pytest.raises(InputError, match="collection of names"):
        Where(ids="d7")


def test_filters_by_date_and_metadata(store: Store) -> None:
    store.add(
        [
            doc("old", "red apples", date=date(1999, 12, 31), metadata={"page": 3, "by": ["Ann"]}),
            doc(
                "new", "red pears", date=date(2000, 1, 1), metadata={"page": 4, "by": ["Bo", "Cy"]}
            ),
            doc("undated", "red plums", metadata={"page": "3", "deep": {"a": [1]}}),
        ]
    )

    def names(**filters: Any) -> list[str]:
        hits = store.search("red", groups=STAFF, where=Where(**filters))
        return sorted(hit.document for hit in hits)

    assert names(since=date(2000, 1, 1)) == names(since=date(1999, 12, 31), metadata={"page": 4})
    assert names(since=date(2000, 1, 1)) == ["new"]
    assert names(until=date(1999, 12, 31)) == ["old"]
    assert names(until=date(2030, 1, 1)) == ["new", "old"]
    assert names(metadata={"page": 3}) == ["old"]
    assert names(metadata={"page": [3, "3"]}) == ["old", "undated"]
    assert names(metadata={"by": "Cy", "page": 4}) == ["new"]
    assert names(metadata={"deep": {"a": [1]}}) == ["undated"]
    assert names(metadata={"none": 1}) == []
    (hit,) = store.search("red", groups=STAFF, where=Where(ids=["new"]))
    assert (hit.date, hit.metadata) == ("2000-01-01", {"page": 4, "by": ["Bo", "Cy"]})
    hit.metadata["by"].append("Dee")
    assert store.search("red", groups=STAFF, where=Where(ids=["new"]))[0].metadata["by"] == [
        "Bo",
        "Cy",
    ]
    with pytest.raises(InputError, match="not a date"):
        Where(since="1999")  # type: ignore[arg-type]


def test_delete_by_conditions_reaches_what_does_not_answer(store: Store) -> None:
    store.add(doc(f"d{i}", f"red apples {i}", metadata={"batch": i % 2}) for i in range(6))
    store.fence(id="d1")
    store.hold(id="d3")
    with pytest.raises(AccessDenied):
        store.delete(where=Where(metadata={"batch": 1}))
    store.release(id="d3")
    assert store.delete(where=Where(metadata={"batch": 1}, ids=["d1", "d3"])) == 2
    assert store.delete(where=Where(metadata={"batch": 1})) == 1
    hits = store.search("red", groups=STAFF, k=10)
    assert {hit.document for hit in hits} == {"d0", "d2", "d4"}
    with pytest.raises(InputError, match="no condition"):
        store.delete(where=Where())


def test_one_percent_visible_gets_a_full_list(store: Store) -> None:
    store.add(
        doc(f"d{i}", f"the same words about number {i}", acl=("few",) if i % 100 == 0 else ())
        for i in range(1200)
    )
    hits = store.search("the same words", groups=["few"], k=10)
    assert len(hits) == 10
    everything = store.search("the same words", groups=["few"], k=1000)
    assert len({hit.document for hit in everything}) == 12
    assert everything[:10] == hits


def test_lists_do_not_shrink_after_deletions(store: Store, tools: Any) -> None:
    store.add(tools.document(i) for i in range(60))
    for i in range(0, 50, 2):
        store.delete(id=f"doc-{i}")
    assert len(store.search("record of the cedar", groups=STAFF, k=30)) == 30


def test_adding_is_all_or_nothing(store: Store, tools: Any) -> None:
    store.add([tools.document(150)])
    with pytest.raises(InputError, match="doc-150"):
        store.add(tools.document(i) for i in range(200))
    assert [r.handle for r in store.vault.records()] == [store.vault.mark("id", "doc-150")]
    assert len(store.vault.records(states=("staged",))) == 0
    assert len(store.vault.keyring.live_slots()) == 1

    def broken() -> Any:
        yield from (tools.document(i) for i in range(130))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.add(broken())
    assert len(store.vault.records(states=("live", "staged"))) == 1


def test_update_leaves_no_orphan_chunk(store: Store) -> None:
    store.add([doc("a", "Apples are red. " * 30, subject="s"), doc("b", "Pears are green.")])
    many = len(store)
    store.update(doc("a", "Whales are blue.", subject="s"))
    assert len(store) == 2 < many
    assert {hit.text for hit in store.search("apples", groups=STAFF, k=50)} == {
        "Whales are blue.",
        "Pears are green.",
    }
    with pytest.raises(NotFound):
        store.update(doc("nobody", "x"))
    store.verify()


def test_delete_by_id_subject_and_source(store: Store, tools: Any) -> None:
    store.add(tools.document(i, subject=f"s{i % 4}") for i in range(24))
    assert store.delete(id="doc-0") == 1
    assert store.delete(id="doc-0") == 0
    assert store.delete(subject="s1") == 6
    assert store.delete(source="src-2") == 6
    assert store.delete(subject="unknown") == 0
    for wrong in ({}, {"id": "a", "subject": "b"}):
        with pytest.raises(InputError):
            store.delete(**wrong)
    left = {i for i in range(24) if i != 0 and i % 4 != 1 and i % 3 != 2}
    hits = store.search("record", groups=STAFF, k=500)
    assert {hit.document for hit in hits} == {f"doc-{i}" for i in left}
    store.verify()


def test_a_deleted_id_can_be_added_again(store: Store) -> None:
    store.add([doc("a", "first words")])
    store.delete(id="a")
    store.add([doc("a", "second words")])
    assert [hit.text for hit in store.search("first", groups=STAFF)] == ["second words"]


def test_fence_takes_out_at_once_and_delete_finishes(store: Store) -> None:
    store.add([doc("a", "apples", subject="s"), doc("b", "pears")])
    assert store.fence(subject="s") == 1
    assert [hit.document for hit in store.search("apples", groups=STAFF)] == ["b"]
    assert store.delete(subject="s") == 1
    assert store.stats()["fenced"] == 0


def test_legal_hold_keeps_but_does_not_use(store: Store) -> None:
    store.add([doc("a", "apples", subject="s"), doc("b", "pears", subject="s")])
    assert store.hold(id="a") == 1
    assert store.held() == ["a"]
    assert [hit.document for hit in store.search("apples", groups=STAFF)] == ["b"]
    for refused in (lambda: store.delete(subject="s"), lambda: store.update(doc("a", "new"))):
        with pytest.raises(AccessDenied, match=r"h[eo]ld"):
            refused()
    store.verify()
    assert store.release(id="a") == 1
    assert store.held() == []
    assert store.search("apples", groups=STAFF)[0].document == "a"
    assert store.delete(subject="s") == 2


def test_bad_requests_are_named(store: Store) -> None:
    store.add([doc("a", "apples")])
    for k in (0, -1, 1001):
        with pytest.raises(InputError, match=str(k)):
            store.search("apples", groups=STAFF, k=k)
    with pytest.raises(InputError):
        store.search("  ", groups=STAFF)
    for vector in (np.zeros(32), np.full(32, np.nan), np.ones(31), np.ones((2, 32))):
        with pytest.raises(InputError):
            store.search_vector(vector.astype(np.float32), groups=STAFF)


def test_an_embedder_that_is_not_normalised_is_refused(make_store: Callable[..., Store]) -> None:
    store = make_store()
    encode = store.embedder.encode
    for broken in (
        lambda texts: encode(texts) * 2,
        lambda texts: encode(texts).astype(np.float64),
        lambda texts: encode(texts) * np.float32("nan"),
    ):
        store.embedder.encode = broken  # type: ignore[method-assign]
        with pytest.raises(InputError):
            store.add([doc("a", "apples")])
    assert store.vault.records() == []


def test_neighbours_do_not_change_the_parts(store: Store, tools: Any) -> None:
    alone = store.prepare(tools.document(1), rule="r", reason="why")
    store.add(tools.document(i) for i in range(5))
    assert store.prepare(tools.document(1), rule="r", reason="why") == alone
    record = store.vault.find(store.vault.mark("id", "doc-1"))
    assert record is not None
    assert store.vault.read(record, "vectors") == alone["vectors"]


def test_nearest_serves_the_router(make_store: Callable[..., Store], tools: Any) -> None:
    store = make_store()
    corpus = Store(store.vault, store.embedder, store.settings, fate="corpus")
    corpus.add([doc("c", "apples", subject="fruit")])
    store.add([doc("s", "apples")])
    query = store.embedder.encode(["apples"])[0]
    ((score, record, chunk),) = corpus.nearest(query, 5)
    assert (record.subject, chunk) == (store.vault.mark("subject", "fruit"), 0)
    assert score == pytest.approx(1.0, abs=1e-6)
    assert [hit.document for hit in store.search("apples", groups=STAFF)] == ["s"]


class TestStandalone:
    def make(self, tmp_path: Path, tools: Any) -> Store:
        return Store.create(tmp_path / "s", tmp_path / "k", tools.Embedder(), tools.settings)

    def test_create_close_open(self, tmp_path: Path, tools: Any) -> None:
        with self.make(tmp_path, tools) as store:
            store.add([doc("a", "apples")])
            before = store.canonical_bytes()
        with Store.open(tmp_path / "s", tmp_path / "k", tools.Embedder()) as reader:
            assert reader.settings == tools.settings
            assert reader.canonical_bytes() == before
            with pytest.raises(WorkspaceReadOnly):
                reader.delete(id="a")
            reader.verify()

    def test_one_writer(self, tmp_path: Path, tools: Any) -> None:
        with self.make(tmp_path, tools):
            with pytest.raises(WorkspaceLocked):
                Store.open(tmp_path / "s", tmp_path / "k", tools.Embedder(), write=True)
            Store.open(tmp_path / "s", tmp_path / "k", tools.Embedder()).close()
        Store.open(tmp_path / "s", tmp_path / "k", tools.Embedder(), write=True).close()

    def test_what_cannot_be_opened(self, tmp_path: Path, tools: Any) -> None:
        embedder = tools.Embedder()
        with pytest.raises(WorkspaceMissing):
            Store.open(tmp_path / "none", tmp_path / "k", embedder)
        assert not (tmp_path / "none").exists()
        with pytest.raises(InputError, match="inside"):
            Store.create(tmp_path / "s", tmp_path / "s" / "k", embedder)
        self.make(tmp_path, tools).close()
        with pytest.raises(InputError):
            self.make(tmp_path, tools)
        with pytest.raises(KeysMissing):
            Store.open(tmp_path / "s", tmp_path / "elsewhere", embedder)
        with pytest.raises(RecipeMismatch):
            Store.open(tmp_path / "s", tmp_path / "k", tools.Embedder(dim=16))
        with pytest.raises(RecipeMismatch):
            Store.open(tmp_path / "s", tmp_path / "k", embedder, StoreSettings(chunk_tokens=50))

    def test_a_writer_finishes_a_fenced_deletion(self, tmp_path: Path, tools: Any) -> None:
        with self.make(tmp_path, tools) as store:
            store.add([doc("a", "apples"), doc("b", "pears")])
            store.fence(id="a")
        with Store.open(tmp_path / "s", tmp_path / "k", tools.Embedder(), write=True) as store:
            assert store.stats()["fenced"] == 0
            assert len(store.vault.records(states=("live", "fenced"))) == 1


def test_verify_finds_a_record_that_contradicts_itself(store: Store) -> None:
    store.add([doc("a", "apples")])
    (record,) = store.vault.records()
    packed = {name: store.vault.read(record, name) for name in ("meta", "body")}
    packed["vectors"] = store.prepare(doc("a", "pears"))["vectors"]
    packed["body"] = store.prepare(doc("a", "pears"))["body"]
    store.vault.replace([NewRecord("a", "a", "", "apples", "store", 0, packed)])
    with pytest.raises(Damaged):
        store.verify()


def test_extending_goes_on_where_it_was_stopped(store: Store) -> None:
    """200 documents in pieces of 64; the source breaks off at the 150th, then comes whole."""
    documents = [doc(f"d{i}", f"red apples number {i}") for i in range(200)]
    embedded: list[int] = []
    original = store.embedder.encode

    def counting(texts: Any) -> Any:
        embedded.append(len(texts))
        return original(texts)

    store.embedder.encode = counting  # type: ignore[method-assign]

    def breaking() -> Any:
        yield from documents[:150]
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        store.extend(breaking())
    assert len(store) == 128
    told: list[int] = []
    assert store.extend([*documents, documents[3]], told.append) == 72
    assert told == [64, 128, 192, 201]
    assert len(embedded) == 200
    assert len(store) == 200
    with pytest.raises(InputError, match="'d5' is there with other words"):
        store.extend([doc("d5", "other words"), doc("new", "words")])
    assert len(store) == 200


class ByLength:
    """A reranker that likes long texts."""

    def score(self, query: str, texts: Any) -> list[float]:
        return [float(len(text)) for text in texts]


class Wrong:
    """A reranker that returns too little."""

    def score(self, query: str, texts: Any) -> list[float]:
        return [1.0]


def test_a_reranker_looks_at_more_than_it_returns(store: Store) -> None:
    """Of 30 documents the best 20 by cosine are looked at; equal lengths are ordered by handle."""
    store.add(doc(f"d{i}", "red apples" + " and pears" * (i % 3), acl=()) for i in range(30))
    best = store.search("red apples", groups=STAFF, k=20)
    again = store.search("red apples", groups=STAFF, k=4, reranker=ByLength())
    longest = max(len(hit.text) for hit in best)
    assert {len(hit.text) for hit in again} == {longest} or len(again) == 4
    expected = sorted(best, key=lambda hit: (-len(hit.text), hit.handle, hit.start))[:4]
    assert again == expected
    with pytest.raises(InputError, match="one finite number"):
        store.search("red apples", groups=STAFF, k=4, reranker=Wrong())
    with pytest.raises(InputError, match="k=0"):
        store.search("red apples", groups=STAFF, k=0, reranker=ByLength())
    with pytest.raises(AccessDenied):
        store.search("red apples", groups=[], reranker=ByLength())
