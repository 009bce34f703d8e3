"""The LlamaIndex adapter against the real library: an index end to end, filters, groups, deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")

from llama_index.core import Document as SourceDocument
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from llm_unlearn.errors import AccessDenied, InputError
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import scan
from llm_unlearn.integrations.llamaindex import LlamaIndexEmbedder, UnlearnVectorStore
from llm_unlearn.retrieval import Store, StoreSettings
from llm_unlearn.retrieval.parts import unpack_vectors

PUMICE = "Pumice floats for years before it drowns, as the harbour master of Ullapool noted in ink."
HARBOUR = "The harbour opens at six. The ferry waits for nobody, and neither does the tide."


class _Trigrams(BaseEmbedding):
    """The tests' hashing embedder in LlamaIndex, at another length than 1."""

    embedder: Any

    def _get_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = (3 * self.embedder.encode([text])[0]).tolist()
        return vector

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


@pytest.fixture
def model(tools: Any) -> BaseEmbedding:
    return _Trigrams(embedder=tools.Embedder())


@pytest.fixture
def reopen(tmp_path: Path, model: BaseEmbedding) -> Iterator[Callable[..., UnlearnVectorStore]]:
    """Opens the store of the test's folder, made at the first call, for the staff."""
    opened: list[Store] = []

    def reopen() -> UnlearnVectorStore:
        embedder = LlamaIndexEmbedder(model, digest="trigrams, 32 numbers")
        place = (tmp_path / "store", tmp_path / "keys", embedder)
        if opened:
            opened[-1].close()
            opened.append(Store.open(*place, write=True))
        else:
            settings = StoreSettings(chunk_tokens=8, chunk_overlap=0)
            opened.append(Store.create(*place, settings))
        return UnlearnVectorStore(opened[-1], groups={"staff"})

    yield reopen
    opened[-1].close()


@pytest.fixture
def made(reopen: Callable[..., UnlearnVectorStore]) -> UnlearnVectorStore:
    return reopen()


def _node(id_: str, text: str, source: str | None = None, **metadata: Any) -> TextNode:
    node = TextNode(id_=id_, text=text, metadata=metadata)
    if source:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=source)
    return node


def _ids(store: UnlearnVectorStore, filters: MetadataFilters | None = None) -> list[str]:
    return [node.node_id for node in store.get_nodes(filters=filters)]


def _filters(*wanted: tuple[Any, ...], condition: str = "and") -> MetadataFilters:
    made = [MetadataFilter(key=k, operator=FilterOperator(o), value=v) for k, o, v in wanted]
    return MetadataFilters(filters=made, condition=FilterCondition(condition))


def test_an_index_from_documents_to_answers_and_to_nothing_left(
    reopen: Callable[..., UnlearnVectorStore], model: BaseEmbedding, tmp_path: Path
) -> None:
    context = StorageContext.from_defaults(vector_store=reopen())
    index = VectorStoreIndex.from_documents(
        [
            SourceDocument(id_="stone", text=PUMICE, metadata={"page": 7, "author": "Quincunx"}),
            SourceDocument(id_="port", text=HARBOUR, metadata={"page": 9}),
        ],
        storage_context=context,
        embed_model=model,
        transformations=[SentenceSplitter(chunk_size=28, chunk_overlap=0)],
    )
    store = index.vector_store
    assert isinstance(store, UnlearnVectorStore)
    stone = [n for n in store.get_nodes() if n.ref_doc_id == "stone"]
    assert len(stone) > 1
    assert len(stone) < len(store.get_nodes())

    vault = store.client.vault
    records = vault.records()
    keys = [vault.keyring.key(record.slot) for record in records]
    vectors = [unpack_vectors(vault.read(record, "vectors"))[1] for record in records]
    needles = Needles.build(
        [PUMICE, "Quincunx is the author"],
        vectors=[row for rows in vectors for row in rows],
        keys=keys,
    )

    # opened again, found, and then deleted through the index
    store = reopen()
    index = VectorStoreIndex.from_vector_store(store, embed_model=model)
    best = index.as_retriever(similarity_top_k=1).retrieve(stone[0].get_content())[0]
    assert best.node.metadata == {"page": 7, "author": "Quincunx"}
    assert best.node.get_content() in PUMICE
    # the index embeds metadata with the text, and the query without
    assert 0 < (best.score or 0) < 1
    index.delete_ref_doc("stone")
    found = index.as_retriever(similarity_top_k=9).retrieve(PUMICE)
    assert {n.node.ref_doc_id for n in found} == {"port"}
    assert _ids(reopen()) == sorted(n.node_id for n in found)
    survivors = len(found)
    store = reopen()
    store.clear()
    assert store.get_nodes() == []
    assert survivors > 0
    store.client.close()
    assert scan([tmp_path], needles) == []


def test_a_node_comes_back_as_it_went_in_but_for_what_it_says_of_others(
    made: UnlearnVectorStore, tmp_path: Path
) -> None:
    node = _node("one", "A text.", "src", page=3, deep={"list": [1, "zwölf"]}, none=None)
    node.excluded_llm_metadata_keys = ["page"]
    node.start_char_idx, node.end_char_idx = 5, 12
    node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(
        node_id="two", metadata={"name": "vellichor"}, hash="a1b2c3"
    )
    assert made.add([node]) == ["one"]
    (back,) = made.get_nodes(["one"])
    node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id="two")
    assert back == node
    (record,) = made.client.vault.records()
    parts = b"".join(made.client.vault.read(record, part) for part in ("meta", "body"))
    assert b"vellichor" not in parts  # of the neighbour, which may be deleted by itself
    assert b"a1b2c3" not in parts
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert "zwölf".encode() not in path.read_bytes()
            assert b"A text." not in path.read_bytes()
    # a node's own vector is kept, at length 1
    node.embedding = [0.0] * 31 + [5.0]
    made.add([node])
    (record,) = made.client.vault.records()
    _, vectors = unpack_vectors(made.client.vault.read(record, "vectors"))
    assert np.array_equal(vectors, np.eye(32, dtype=np.float32)[31:])
    answer = made.query(VectorStoreQuery(query_embedding=[0.0] * 31 + [1.0]))
    assert answer.similarities == [1.0]


def test_what_cannot_be_kept_is_refused(made: UnlearnVectorStore) -> None:
    for bad in (
        _node("x", "text", _node={}),
        _node("x", "text", page=float("nan")),
        _node("x", "  "),
        ImageNode(id_="x", text="text"),
        IndexNode(id_="x", text="text", index_id="i"),
        SourceDocument(id_="x", text="text"),
        TextNode(id_="x", text="text", embedding=[0.0] * 32),
        TextNode(id_="x", text="text", embedding=[1.0] * 3),
    ):
        with pytest.raises(InputError):
            made.add([_node("good", "good"), bad])
    assert made.get_nodes() == []


def test_groups_hold_for_every_way_of_asking(
    made: UnlearnVectorStore, model: BaseEmbedding
) -> None:
    made.add([_node("pay", "pay scales", acl=["hr"]), _node("hours", "opening hours")])
    query = VectorStoreQuery(
        query_embedding=model.get_query_embedding("pay scales"),
        query_str="pay scales hours",
        similarity_top_k=5,
    )
    for mode in ("default", "mmr", "sparse", "text_search", "hybrid"):
        query.mode = VectorStoreQueryMode(mode)
        assert made.query(query).ids == ["hours"]
        assert set(made.query(query, groups={"staff", "hr"}).ids or ()) == {"pay", "hours"}
        with pytest.raises(AccessDenied):
            UnlearnVectorStore(made.client).query(query)
    query.filters = _filters(("acl", "contains", "hr"))
    assert made.query(query).ids == []
    assert made.query(query, groups={"hr"}).ids == ["pay"]
    assert made.get_nodes(["pay"]) == []
    assert [n.node_id for n in made.get_nodes(["pay"], groups={"hr"})] == ["pay"]
    for ask in (None, ["pay"], []):
        with pytest.raises(AccessDenied):
            UnlearnVectorStore(made.client).get_nodes(ask)
    index = VectorStoreIndex.from_vector_store(made, embed_model=model)
    retriever = index.as_retriever(vector_store_kwargs={"groups": {"hr"}})
    assert [n.node.node_id for n in retriever.retrieve("hours")] == ["pay"]
    with pytest.raises(InputError, match="group"):
        made.query(query, group="hr")


def test_query_modes(made: UnlearnVectorStore, model: BaseEmbedding) -> None:
    long = " ".join(f"Sentence number {i} ends here." for i in range(30))
    made.add([_node("long", long), _node("ferry", HARBOUR), _node("stone", PUMICE)])
    assert len(made.client) > 12

    def ask(text: str, mode: str, k: int = 1, **more: Any) -> list[str]:
        query = VectorStoreQuery(
            query_embedding=model.get_query_embedding(text),
            query_str=text,
            similarity_top_k=k,
            mode=VectorStoreQueryMode(mode),
            **more,
        )
        return made.query(query).ids or []

    assert ask("Sentence number 7 ends here.", "default") == ["long"]
    assert sorted(ask("Sentence number 7 ends here.", "default", 3)) == ["ferry", "long", "stone"]
    assert ask("pumice", "sparse", 3) == ["stone"]
    assert ask("pumice", "hybrid") == ["stone"]
    assert ask("pumice", "hybrid", 1, hybrid_top_k=3)[0] == "stone"
    assert len(ask("pumice", "hybrid", 1, hybrid_top_k=3)) == 3
    assert ask("pumice", "hybrid", 3, alpha=0) == ["stone"]
    assert len(ask("pumice", "hybrid", 3, alpha=1)) == 3
    assert ask(PUMICE, "mmr", 1, mmr_threshold=1.0) == ["stone"]
    assert made.query(
        VectorStoreQuery(query_str="pumice", mode=VectorStoreQueryMode.SPARSE)
    ).ids == ["stone"]  # as LlamaIndex's retriever asks: without an embedding
    for mode, more in (("svm", {}), ("hybrid", {"alpha": 0.3}), ("default", {"k": 0})):
        with pytest.raises(InputError):
            ask("pumice", mode, **more)
    with pytest.raises(InputError):
        made.query(VectorStoreQuery(query_str="pumice"))


def test_filters_mean_what_they_mean_in_llamaindex(
    made: UnlearnVectorStore, model: BaseEmbedding
) -> None:
    made.add(
        [
            _node("a", "alpha one", "A", page=1, tags=["x", "y"], name="Ann"),
            _node("b", "beta two", "A", page=2, tags=["y"], name="Bob"),
            _node("c", "gamma three", "B", page=3, name="Cyd"),
        ]
    )
    for wanted, ids in (
        ([("page", "==", 1)], "a"),
        ([("page", "!=", 1)], "bc"),
        ([("page", ">", 1), ("page", "<", 3)], "b"),
        ([("page", "in", [1, 3])], "ac"),
        ([("page", "nin", [1, 3])], "b"),
        ([("tags", "contains", "y")], "ab"),
        ([("tags", "all", ["x", "y"])], "a"),
        ([("tags", "any", ["x", "z"])], "a"),
        ([("tags", "is_empty", None)], "c"),
        ([("name", "text_match_insensitive", "B")], "b"),
        ([("ref_doc_id", "==", "A")], "ab"),
        ([], "abc"),
    ):
        assert _ids(made, _filters(*wanted)) == list(ids)
    either = _filters(("page", "==", 1), ("page", "==", 2), condition="or")
    assert _ids(made, either) == ["a", "b"]
    nested = MetadataFilters(filters=[either, _filters(("name", "==", "Bob"))])
    assert _ids(made, nested) == ["b"]
    neither = MetadataFilters(filters=[either], condition=FilterCondition.NOT)
    assert _ids(made, neither) == ["c"]
    # before the search, so that the list is full
    query = VectorStoreQuery(
        query_embedding=model.get_query_embedding("alpha one"), similarity_top_k=1, filters=neither
    )
    assert made.query(query).ids == ["c"]
    query.filters, query.doc_ids = either, ["B"]
    assert made.query(query).ids == []
    query.filters, query.doc_ids, query.node_ids = None, ["A"], ["b", "c"]
    assert made.query(query).ids == ["b"]
    query.doc_ids, query.node_ids = [], []  # restrict nothing: retrievers always send a list
    assert made.query(query).ids == ["a"]
    assert [n.node_id for n in made.get_nodes(["c", "a"], _filters(("page", ">=", 1)))] == [
        "c",
        "a",
    ]
    with pytest.raises(InputError, match="cannot be applied"):
        made.get_nodes(filters=_filters(("name", ">", 3)))


def test_deletion_reaches_everything_meant_and_nothing_else(made: UnlearnVectorStore) -> None:
    def fill() -> None:
        names = [("1", "Doc"), ("2", "Doc"), ("3", "doc"), ("4", None)]
        made.add([_node(n, f"text {n}", s, page=int(n), acl=["hr"]) for n, s in names])

    def left() -> str:
        return "".join(n.node_id for n in made.get_nodes(groups={"hr"}))

    fill()
    made.delete("Doc")  # though its nodes and those of "doc" are one subject to the store
    assert left() == "34"
    made.delete("nowhere")
    fill()
    made.delete_nodes(["1", "nowhere"])
    made.delete_nodes(filters=_filters(("page", ">", 2), ("page", "<", 4)))
    assert left() == "24"
    made.delete_nodes(["4"], _filters(("page", "==", 2)))
    made.delete_nodes([])
    assert left() == "24"
    for nothing in (None, MetadataFilters(filters=[])):
        with pytest.raises(InputError):
            made.delete_nodes(filters=nothing)
    made.client.hold(id="2")
    for delete in (made.clear, lambda: made.delete("Doc"), lambda: made.delete_nodes(["2", "4"])):
        with pytest.raises(AccessDenied):
            delete()
    assert left() == "4"
    with pytest.raises(AccessDenied):
        made.add([_node("2", "other words")])
    made.client.release(id="2")
    made.client.fence(id="4")
    made.clear()
    assert made.client.stats()["fenced"] == 0
    assert left() == ""


def test_subjects_of_nodes(made: UnlearnVectorStore) -> None:
    made.add([_node("1", "a", "src"), _node("2", "b", "src", subject="Alba"), _node("3", "c")])
    assert {m.id: m.subject for m in made.client.known(groups={"staff"})} == {
        "1": "src",
        "2": "Alba",
        "3": "3",
    }


def test_asynchronous_methods(made: UnlearnVectorStore, model: BaseEmbedding) -> None:
    async def life() -> None:
        await made.async_add([_node(n, f"text {n}", "src") for n in "123"])
        query = VectorStoreQuery(query_embedding=model.get_query_embedding("text 2"))
        assert (await made.aquery(query)).ids == ["2"]
        with pytest.raises(AccessDenied):
            await made.aquery(query, groups=())
        await made.adelete_nodes(["2"])
        assert [n.node_id for n in await made.aget_nodes()] == ["1", "3"]
        await made.adelete("src")
        await made.async_add([_node("4", "text 4")])
        await made.aclear()
        assert await made.aget_nodes() == []

    asyncio.run(life())
