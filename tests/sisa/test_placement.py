"""Placement by group and by risk: from a subject's own words, never from the rest of the corpus."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.config import Config, TrainingConfig
from llm_unlearn.config_placement import PlacementConfig
from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.declared import agree, declared
from llm_unlearn.sisa.layout import Declared, Layout, slices

KEY = bytes(range(32))
BY_GROUP = PlacementConfig(shard_by="group", groups={"poems": 2, "laws": 3})
BY_RISK = PlacementConfig(shard_by="risk", slice_by="risk", risk_cuts=(0.1, 0.5))


def _mark(value: object) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()[:16]


def test_a_named_group_is_alone_in_its_shard() -> None:
    layout = Layout(KEY, 5, 2, BY_GROUP)
    assert layout.rest == (0, 1, 4)
    for n in range(200):
        subject = _mark(n)
        assert layout.shard(subject, Declared("poems")) == 2
        assert layout.shard(subject, Declared("laws")) == 3
        assert layout.shard(subject) in layout.rest
        assert layout.shard(subject, Declared("letters")) in layout.rest
    assert {layout.shard(_mark(n)) for n in range(200)} == set(layout.rest)


def test_an_unnamed_group_stays_together() -> None:
    layout = Layout(KEY, 5, 2, BY_GROUP)
    homes = {
        name: {layout.shard(_mark(n), Declared(name)) for n in range(50)}
        for name in ("a", "b", "c", "d", "e", "f", "g", "h")
    }
    assert all(len(found) == 1 for found in homes.values())
    assert len(set().union(*homes.values())) > 1


def test_classes_of_risk_have_bands_worked_by_hand() -> None:
    # 8 places, 3 classes: 0 to 1, 2 to 4, 5 to 7; a risk at the cut belongs to the class above
    layout = Layout(KEY, 8, 8, BY_RISK)
    bands = {0.0: {0, 1}, 0.09: {0, 1}, 0.1: {2, 3, 4}, 0.5: {5, 6, 7}, 1.0: {5, 6, 7}}
    for risk, band in bands.items():
        said = Declared(risk=risk)
        assert {layout.shard(_mark(n), said) for n in range(300)} == band
        assert {layout.stage(_mark(n), 4, said) for n in range(300)} == {(4, s) for s in band}


def test_the_default_reads_nothing() -> None:
    layout, said = Layout(KEY, 4, 3), Declared("poems", 0.9)
    for n in range(50):
        assert layout.shard(_mark(n), said) == layout.shard(_mark(n))
        assert layout.stage(_mark(n), 1, said) == layout.stage(_mark(n), 1)


subjects = st.dictionaries(
    st.integers(0, 30),
    st.tuples(st.sampled_from([None, "poems", "laws", "letters", "maps"]), st.floats(0, 1)),
    max_size=20,
)


@given(subjects, st.integers(0, 30), st.sampled_from([BY_GROUP, BY_RISK]))
def test_removing_one_moves_no_other(
    found: dict[int, tuple[str | None, float]], gone: int, rule: PlacementConfig
) -> None:
    layout = Layout(KEY, 5, 4, rule)

    def lay(numbers: list[int]) -> dict[bytes, tuple[int, tuple[int, int]]]:
        records = [
            Record(_mark((n, d)), _mark(n), b"s" * 16, _mark((n, d)), "corpus", "live", 1, n)
            for n in numbers
            for d in range(2)
        ]
        said = {r.handle: Declared(*found[r.slot]) for r in records}
        laid = slices(layout, b"r" * 32, records, said)
        return {
            r.handle: (shard, part.stage)
            for shard, parts in laid.items()
            for part in parts
            for r in part.records
        }

    whole, less = lay(sorted(found)), lay([n for n in found if n != gone])
    assert len(whole) == 2 * len(found)
    assert less == {handle: whole[handle] for handle in less}
    for number in found:
        assert len({whole[_mark((number, d))] for d in range(2)}) == 1


def test_without_a_place_it_is_not_trained() -> None:
    records = [
        Record(_mark(n), _mark(n), b"s" * 16, _mark(n), "corpus", "live", 1, n) for n in range(4)
    ]
    laid = slices(Layout(KEY, 3, 1, BY_GROUP_ONE), b"r" * 32, records, {_mark(2): None})
    kept = {r.slot for parts in laid.values() for part in parts for r in part.records}
    assert kept == {0, 1, 3}


BY_GROUP_ONE = PlacementConfig(shard_by="group", groups={"poems": 2})


def _document(*tags: str, acl: tuple[str, ...] = ()) -> Document:
    return Document(id="d", text="t", tags=tags, acl=acl)


def test_what_a_document_declares() -> None:
    by_owner = PlacementConfig(shard_by="group", group_tag="owner", groups={"acme": 0})
    assert declared(_document("owner: acme", "group:x", "risk:9"), by_owner) == Declared("acme")
    assert declared(_document("x"), by_owner) == Declared()
    assert declared(_document("risk:0.25", "owner:y"), BY_RISK) == Declared(risk=0.25)
    assert declared(_document(), BY_RISK) == Declared()
    by_access = PlacementConfig(shard_by="group", group_by="acl", groups={"legal": 0})
    assert declared(_document(acl=("legal",)), by_access) == Declared("legal")
    assert Layout(KEY, 3, 1, by_access).required_groups == {0: "legal"}
    assert Layout(KEY, 3, 1, BY_GROUP_ONE).required_groups == {}


@pytest.mark.parametrize(
    ("document", "rule", "words"),
    [
        (_document("group:a", "group:b"), BY_GROUP, "two groups: a, b"),
        (_document("risk:high"), BY_RISK, "risk 'high'"),
        (_document("risk:1.5"), BY_RISK, "risk '1.5'"),
        (_document("risk:nan"), BY_RISK, "risk 'nan'"),
        (_document("risk:0.1", "risk:0.2"), BY_RISK, "two risks"),
        (_document(acl=("legal",)), BY_GROUP, "no shard is theirs alone"),
        (_document(acl=("legal",)), PlacementConfig(), "no shard is theirs alone"),
        (
            _document(acl=("legal", "hr")),
            PlacementConfig(shard_by="group", group_by="acl", groups={"legal": 0, "hr": 1}),
            "no shard is theirs alone",
        ),
        (
            _document("group:maps"),
            PlacementConfig(shard_by="group", groups={"poems": 0}, unnamed_groups="refuse"),
            "declares the group 'maps'",
        ),
    ],
)
def test_what_cannot_be_placed_is_refused(
    document: Document, rule: PlacementConfig, words: str
) -> None:
    with pytest.raises(InputError, match="Document 'd'") as caught:
        declared(document, rule)
    assert words in str(caught.value)


def test_a_subject_declares_one_thing() -> None:
    agree(Declared("a", 0.1), Declared("a", 0.1), "x", "y", "s")
    with pytest.raises(InputError, match="two groups: a in document 'x', None in 'y'"):
        agree(Declared("a"), Declared(), "x", "y", "s")
    with pytest.raises(InputError, match=r"two risks: 0\.1 in document 'x', 0\.0 in 'y'"):
        agree(Declared("a", 0.1), Declared("a"), "x", "y", "s")


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({"shard_by": "group", "groups": {"a": 4}}, "no shard 4"),
        ({"shard_by": "group", "groups": {"a": 0, "b": 1, "c": 2, "d": 3}}, "none is left"),
        ({"shard_by": "group", "unnamed_groups": "refuse"}, "no group is named"),
        ({"shard_by": "group", "group_by": "acl", "groups": {"a": 0, "b": 0}}, "two access groups"),
        ({"shard_by": "risk"}, "without cut-points"),
        ({"slice_by": "risk", "risk_cuts": [0.1, 0.2, 0.3]}, "4 classes"),
        ({"slice_by": "risk", "risk_cuts": [0.3, 0.2]}, "not rising"),
    ],
)
def test_rules_that_cannot_hold_are_refused(placement: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingConfig.model_validate({"shards": 4, "slices": 3, "placement": placement})


def test_the_recipe_holds_the_rules() -> None:
    other = Config.model_validate({"training": {"placement": {"group_tag": "owner"}}})
    assert other.training != Config().training
