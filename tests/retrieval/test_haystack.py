"""The Haystack adapter: Haystack's own mixins, and what those do not ask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

import pytest

pytest.importorskip("haystack", reason="haystack-ai is not installed")

from haystack import Document, Pipeline
from haystack.components.embedders import MockDocumentEmbedder, MockTextEmbedder
from haystack.core.serialization import allow_deserialization_module
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    DocumentStoreBaseExtendedTests,
)

from llm_unlearn.errors import AccessDenied, InputError, RecipeMismatch
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import scan
from llm_unlearn.integrations.haystack import UnlearnDocumentStore
from llm_unlearn.integrations.haystack_retrievers import (
    UnlearnBM25Retriever,
    UnlearnEmbeddingRetriever,
)
from llm_unlearn.retrieval.parts import unpack_vectors

PUMICE = "Pumice floats for years before it drowns, as the harbour master of Ullapool noted in ink."
PAGE_4 = {"field": "meta.page", "operator": "==", "value": 4}


def _store(folder: Path, dimension: int = 8, **more: Any) -> UnlearnDocumentStore:
    return UnlearnDocumentStore(
        str(folder / "store"),
        str(folder / "keys"),
        MockTextEmbedder(dimension=dimension),
        digest=f"mock, {dimension} numbers",
        groups=more.pop("groups", ["staff"]),
        **more,
    )


@pytest.fixture
def made(tmp_path: Path) -> Iterator[UnlearnDocumentStore]:
    store = _store(tmp_path)
    yield store
    store.close()


class TestHaystacksOwn(DocumentStoreBaseExtendedTests, CountDocumentsByFilterTest):
    """The mixins of everything that the document store has."""

    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[UnlearnDocumentStore]:
        store = _store(tmp_path, 768)
        yield store
        store.close()

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """Documents come by id, and embeddings to float32 precision; all else is as it was."""
        ordered = sorted(expected, key=lambda document: document.id)
        assert [d.id for d in received] == [d.id for d in ordered]
        for one, other in zip(received, ordered, strict=True):
            assert (one.content, one.meta, one.score) == (other.content, other.meta, other.score)
            if other.embedding is None:
                assert one.embedding is None
            else:
                assert one.embedding == pytest.approx(other.embedding, rel=1e-5, abs=1e-6)

    def test_write_documents(self, document_store: UnlearnDocumentStore) -> None:
        """The default is to fail on duplicates."""
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([Document(content="other"), document])
        self.assert_documents_are_equal(document_store.filter_documents(), [document])


def test_a_pipeline_from_writing_to_answers_saved_and_made_again(
    made: UnlearnDocumentStore,
) -> None:
    documents = [
        Document(id="tide", content="The tide is late.", meta={"page": 4}),
        Document(id="rope", content="Rope is dearer.", meta={"page": 4, "acl": ["buyers"]}),
        Document(id="oil", content="Oil is cheap.", meta={"page": 9}),
    ]
    embedded = MockDocumentEmbedder(dimension=8).run(documents)["documents"]
    made.write_documents([embedded[0], embedded[1], documents[2]])  # one without embedding
    pipeline = Pipeline()
    pipeline.add_component("embedder", MockTextEmbedder(dimension=8))
    pipeline.add_component("retriever", UnlearnEmbeddingRetriever(made, top_k=3))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    allow_deserialization_module("llm_unlearn")
    saved = pipeline.dumps()
    assert "tide" not in saved
    question = {"embedder": {"text": "The tide is late."}}
    first = pipeline.run(question)["retriever"]["documents"]
    assert [d.id for d in first] == ["tide", "oil"]
    assert first[0].score == pytest.approx(1.0)
    assert first[0].embedding is None
    assert first[0].meta == {"page": 4}

    made.close()
    again = Pipeline.loads(saved)
    loaded = again.get_component("retriever").document_store
    try:
        assert again.run(question)["retriever"]["documents"] == first
        asked = {"retriever": {"groups": ["buyers", "staff"], "filters": PAGE_4}}
        both = again.run(question | asked)["retriever"]["documents"]
        assert [d.id for d in both] == ["tide", "rope"]
    finally:
        loaded.close()


def test_groups_hold_for_every_way_of_asking(made: UnlearnDocumentStore, tmp_path: Path) -> None:
    pay = Document(id="pay", content="pay scales", meta={"acl": ["hr"], "page": 4})
    hours = Document(id="hours", content="pay for opening hours", meta={"page": 4})
    made.write_documents([pay, hours])
    words = UnlearnBM25Retriever(made)
    nearest = UnlearnEmbeddingRetriever(made, top_k=5)
    vector = MockTextEmbedder(dimension=8).run("pay scales")["embedding"]
    for filters in (None, PAGE_4, {"field": "content", "operator": "!=", "value": "x"}):
        assert made.filter_documents(filters) == [hours]
        for found in (
            words.run("pay scales", filters=filters),
            words.run("pay scales", vector, filters),
            nearest.run(vector, filters=filters),
        ):
            assert [d.id for d in found["documents"]] == ["hours"]
    assert made.count_documents() == 1
    assert made.count_documents_by_filter(PAGE_4) == 1
    assert [d.id for d in nearest.run(vector, groups=["hr"])["documents"]] == ["pay"]
    hr = UnlearnBM25Retriever(made, groups=["hr"], filters=PAGE_4, filter_policy="merge")
    assert [d.id for d in hr.run("pay", filters=PAGE_4)["documents"]] == ["pay"]
    assert made.update_by_filter(PAGE_4, {"seen": True}) == 1
    assert "seen" not in hr.run("pay")["documents"][0].meta

    made.close()
    nobody = _store(tmp_path, groups=[])
    try:
        for ask in (
            nobody.count_documents,
            nobody.filter_documents,
            lambda: nobody.filter_documents(PAGE_4),
            lambda: nobody.update_by_filter(PAGE_4, {}),
            lambda: UnlearnBM25Retriever(nobody).run("pay"),
            lambda: UnlearnEmbeddingRetriever(nobody).run(vector),
            lambda: UnlearnEmbeddingRetriever(nobody, groups=[]).run(vector),
        ):
            with pytest.raises(AccessDenied):
                ask()
        # deletion reaches everything all the same
        assert nobody.delete_by_filter(PAGE_4) == 2
    finally:
        nobody.close()


def test_an_update_keeps_vectors_and_moves_access(made: UnlearnDocumentStore) -> None:
    long = " ".join(f"Sentence number {i} ends here." for i in range(40))
    vector = [0.0] * 7 + [3.0]
    made.write_documents(
        [Document(id="long", content=long), Document(id="v", content="v", embedding=vector)]
    )
    vault = made.store.vault

    def packed() -> dict[bytes, bytes]:
        return {record.handle: vault.read(record, "vectors") for record in vault.records()}

    before = packed()
    assert len(made.store) > 2
    everything = {"field": "id", "operator": "!=", "value": ""}
    assert made.update_by_filter(everything, {"subject": "alba", "note": "new"}) == 2
    assert packed() == before
    assert {meta.subject for meta in made.store.known(groups=["staff"])} == {"alba"}
    assert made.filter_documents()[1].embedding == vector
    assert made.search("sentence 7", vector, return_embedding=True)[0].id in ("long", "v")
    assert made.update_by_filter(everything, {"acl": ["hr"]}) == 2
    assert made.count_documents() == 0


def test_what_cannot_be_kept_or_asked_is_refused(made: UnlearnDocumentStore) -> None:
    good = Document(id="good", content="good", meta={"page": 4})
    for bad in (
        Document(blob=ByteStream(b"x")),
        Document(content=" "),
        Document(content="x", sparse_embedding=SparseEmbedding(indices=[0], values=[1.0])),
        Document(content="x", meta={"x": float("nan")}),
        Document(content="x", meta={"_embedding_length": 1.0}),
        Document(content="x", embedding=[0.0] * 8),
        Document(content="x", embedding=[1.0] * 3),
    ):
        with pytest.raises(InputError):
            made.write_documents([good, bad])
    assert made.count_documents() == 0
    made.write_documents([good, good], policy=DuplicatePolicy.OVERWRITE)
    for filters in ({}, {"field": "content", "operator": "==", "value": "good"}):
        with pytest.raises(FilterError):
            made.delete_by_filter(filters)
    with pytest.raises(FilterError):
        made.filter_documents({"field": "content", "operator": ">", "value": 3})
    with pytest.raises(InputError):
        made.update_by_filter(PAGE_4, {"_embedding_length": 2.0})
    with pytest.raises(InputError):
        made.search("good", top_k=0)
    made.store.hold(id="good")
    for delete in (
        made.delete_all_documents,
        lambda: made.delete_documents(["good"]),
        lambda: made.delete_by_filter(PAGE_4),
        lambda: made.write_documents([good], policy=DuplicatePolicy.OVERWRITE),
    ):
        with pytest.raises(AccessDenied):
            delete()


def test_nothing_of_a_deleted_document_is_left(made: UnlearnDocumentStore, tmp_path: Path) -> None:
    gone = Document(id="gone", content=PUMICE, meta={"note": "Quincunx is the author of all of it"})
    given = Document(id="given", content=PUMICE, embedding=[float(i + 1) / 7 for i in range(8)])
    made.write_documents([gone, given, Document(id="kept", content="Oil is cheap.")])
    vault = made.store.vault
    records = [vault.find(vault.mark("id", name)) for name in ("gone", "given")]
    keys = [vault.keyring.key(record.slot) for record in records if record]
    rows = [r for x in records if x for r in unpack_vectors(vault.read(x, "vectors"))[1]]
    needles = Needles.build([PUMICE, gone.meta["note"]], vectors=rows, keys=keys)
    assert needles.fragments
    made.delete_documents(["gone", "given", "nowhere"])
    assert [d.id for d in made.filter_documents()] == ["kept"]
    made.close()
    assert scan([tmp_path], needles) == []
    assert [d.id for d in made.filter_documents()] == ["kept"]  # opened again

    other = _store(tmp_path)
    other.digest = "another model"
    made.close()
    with pytest.raises(RecipeMismatch):
        other.count_documents()
