"""The LangChain adapter: LangChain's own suite, and what that suite does not ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

from llm_unlearn.errors import AccessDenied, InputError
from llm_unlearn.integrations.langchain import (
    LangChainEmbedder,
    UnlearnRetriever,
    UnlearnVectorStore,
)
from llm_unlearn.retrieval import Store, StoreSettings
from llm_unlearn.retrieval.where import Where


@pytest.fixture
def made(tmp_path: Path) -> Iterator[UnlearnVectorStore]:
    """An empty store, searched on behalf of the staff."""
    embeddings = VectorStoreIntegrationTests.get_embeddings()
    embedder = LangChainEmbedder(embeddings, digest="fake, 6 numbers")
    settings = StoreSettings(chunk_tokens=8, chunk_overlap=0)
    with Store.create(tmp_path / "store", tmp_path / "keys", embedder, settings) as store:
        yield UnlearnVectorStore(store, groups={"staff"})


@pytest.mark.anyio
class TestOfficialSuite(VectorStoreIntegrationTests):
    """All of it, synchronous and asynchronous."""

    @pytest.fixture
    def vectorstore(self, made: UnlearnVectorStore) -> VectorStore:
        return made


def test_groups_hold_for_every_way_of_asking(made: UnlearnVectorStore) -> None:
    made.add_texts(["pay scales", "opening hours"], [{"acl": ["hr"]}, {}], ids=["pay", "hours"])
    both = {"staff", "hr"}
    assert [d.id for d in made.similarity_search("pay scales")] == ["hours"]
    assert [d.id for d in made.similarity_search("pay scales", groups=both)] == ["pay", "hours"]
    assert made.get_by_ids(["pay"]) == []
    assert made.get_by_ids(["pay"], groups={"hr"})[0].metadata == {"acl": ["hr"]}
    assert [d.id for d in made.max_marginal_relevance_search("pay scales")] == ["hours"]
    nobody = UnlearnVectorStore(made.store)
    for ask in (nobody.similarity_search, nobody.max_marginal_relevance_search, nobody.get_by_ids):
        with pytest.raises(AccessDenied):
            ask("pay")  # type: ignore[operator]
    hr = UnlearnRetriever(vector_store=made, groups=frozenset({"hr"}), mode="lexical")
    assert [d.id for d in hr.invoke("the pay of opening hours")] == ["pay"]
    plain = made.as_retriever(search_kwargs={"groups": both, "k": 1})
    assert [d.id for d in plain.invoke("pay scales")] == ["pay"]


def test_metadata_comes_back_as_it_went_in_and_is_sealed(
    made: UnlearnVectorStore, tmp_path: Path
) -> None:
    metadata = {
        "source": "https://a.example/x?y=1",
        "page": 3,
        "ratio": 0.5,
        "none": None,
        "deep": {"list": [1, "zwölf", {"flag": True}]},
        "secret-key-name": "quincunx-value",
    }
    document = Document(id="one", page_content="A text.", metadata=metadata)
    assert made.add_documents([document]) == ["one"]
    assert made.similarity_search("A text.") == [document] == made.get_by_ids(["one"])
    assert type(made.get_by_ids(["one"])[0].metadata["page"]) is int
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"quincunx" not in data
            assert b"secret-key-name" not in data
    assert made.similarity_search("x", filter={"page": 4}) == []
    assert made.similarity_search("x", filter={"page": 3}) == [document]
    assert made.similarity_search("x", filter=Where(sources=[metadata["source"]])) == [document]
    for bad in ({"x": float("nan")}, {"x": object()}, {"x": (1, 2)}, {" x": 1}, {1: 1}):
        with pytest.raises(InputError, match="two"):
            made.add_texts(["B"], [bad], ids=["two"])
    assert made.get_by_ids(["two"]) == []


def test_a_long_text_is_found_by_its_best_chunk_and_comes_back_whole_and_once(
    made: UnlearnVectorStore,
) -> None:
    long = " ".join(f"Sentence number {i} ends here." for i in range(30))
    made.add_texts([long, "short one", "short two"], ids=["long", "one", "two"])
    assert len(made.store) > 12
    found = made.similarity_search_with_score("Sentence number 7 ends here.", k=3)
    assert sorted(d.id or "" for d, _ in found) == ["long", "one", "two"]
    assert {d.id: d.page_content for d, _ in found}["long"] == long
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    relevance = made.similarity_search_with_relevance_scores("short one", k=1)
    assert relevance[0][1] == pytest.approx(1.0)
    hybrid = UnlearnRetriever(vector_store=made, groups=frozenset({"staff"}), k=2)
    assert hybrid.invoke("number 7")[0].id == "long"


def test_deletion_by_subject_reaches_everything_and_never_everybody(
    made: UnlearnVectorStore,
) -> None:
    made.add_texts(
        ["a", "b", "c"],
        [{"subject": "alba"}, {"subject": "alba"}, {"subject": "brio"}],
        ids=["1", "2", "3"],
    )
    with pytest.raises(InputError):
        made.delete()
    assert made.delete(where=Where(subjects=["Alba"]))
    assert [d.id for d in made.get_by_ids(["1", "2", "3"])] == ["3"]
    made.store.hold(id="3")
    assert made.get_by_ids(["3"]) == []
    with pytest.raises(AccessDenied):
        made.delete(["3"])
    with pytest.raises(AccessDenied):
        made.add_texts(["new"], ids=["3"])


def test_from_texts_makes_a_store_that_opens_again(tmp_path: Path) -> None:
    embeddings = VectorStoreIntegrationTests.get_embeddings()
    place = {"path": tmp_path / "store", "keys": tmp_path / "keys"}
    with pytest.raises(InputError):
        UnlearnVectorStore.from_texts(["a"], embeddings)
    made = UnlearnVectorStore.from_texts(
        ["a", "b"], embeddings, [{"n": 1}, {"n": 2}], ids=["x", "y"], digest="fake", **place
    )
    made.store.close()
    embedder = LangChainEmbedder(embeddings, digest="fake")
    with Store.open(*place.values(), embedder) as store:
        again = UnlearnVectorStore(store, groups={"staff"})
        assert [d.metadata for d in again.similarity_search("b", k=1)] == [{"n": 2}]
