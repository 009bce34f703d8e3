"""The separation policy: order, reasons, and what no rule can bring about."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_unlearn.documents import Document
from llm_unlearn.separation import (
    ACCESS_RULE,
    OPEN_LICENSES,
    Condition,
    Decision,
    Rule,
    SeparationPolicy,
    decide,
)


def nothing(_: str) -> frozenset[str]:
    return frozenset()


def mail(text: str) -> frozenset[str]:
    return frozenset({"email"}) if "@" in text else frozenset()


def document(**fields: Any) -> Document:
    return Document(**{"id": "d", "text": "A text.", **fields})


def policy(*rules: tuple[dict[str, Any], str]) -> SeparationPolicy:
    return SeparationPolicy.model_validate(
        {
            "rules": [
                {"name": f"r{i}", "when": when, "then": then}
                for i, (when, then) in enumerate(rules)
            ]
        }
    )


@pytest.mark.parametrize(
    ("fields", "decision"),
    [
        ({}, Decision("store", "default", "no rule names it (no licence)")),
        (
            {"license": "CC-BY-NC-4.0"},
            Decision("store", "default", "no rule names it (licence CC-BY-NC-4.0)"),
        ),
        (
            {"license": "CC0-1.0"},
            Decision("corpus", "open-licence", "its licence is CC0-1.0"),
        ),
        ({"license": " Mit "}, Decision("corpus", "open-licence", "its licence is Mit")),
        (
            {"license": "MIT", "tags": ["x", "leaked"]},
            Decision("refused", "hazardous", "it is tagged leaked"),
        ),
        (
            {"license": "MIT", "acl": ["hr"]},
            Decision("store", "access-groups", "it has access groups"),
        ),
        (
            {"license": "MIT", "text": "Write to a@b.example"},
            Decision("store", "personal-data", "it holds personal data (email)"),
        ),
        (
            {"license": "MIT", "acl": ["hr"], "tags": ["hazardous"]},
            Decision("refused", "hazardous", "it is tagged hazardous"),
        ),
    ],
)
def test_the_default_policy(fields: dict[str, Any], decision: Decision) -> None:
    assert decide(document(**fields), SeparationPolicy(), mail) == decision


@pytest.mark.parametrize(
    ("when", "matching", "other"),
    [
        ({"license": "cc-by-*"}, {"license": "CC-BY-SA-4.0"}, {"license": "CC0"}),
        ({"license": ["MIT", "ISC"]}, {"license": "isc"}, {"license": "MIT-0"}),
        ({"license": "*"}, {"license": "whatever"}, {"license": ""}),
        ({"license": ""}, {"license": " "}, {"license": "MIT"}),
        ({"tags": ["a", "b"]}, {"tags": ["c", "b"]}, {"tags": ["ab"]}),
        ({"source": "https://*.org/*"}, {"source": "HTTPS://x.ORG/y"}, {"source": "https://org/"}),
        ({"subject": "author-0*"}, {"subject": "author-007"}, {"subject": "author-1"}),
        ({"min_length": 8}, {"text": "12345678"}, {"text": "1234567"}),
        ({"max_length": 8}, {"text": "12345678"}, {"text": "123456789"}),
        ({"acl": False}, {}, {"acl": ["hr"]}),
        ({"acl": True}, {"acl": ["hr"]}, {}),
        ({"personal_data": "any"}, {"text": "a@b.org"}, {"text": "ab.org"}),
        ({"personal_data": ["iban", "email"]}, {"text": "a@b.org"}, {"text": "ab.org"}),
        ({"tags": "a", "license": "MIT"}, {"tags": ["a"], "license": "MIT"}, {"tags": ["a"]}),
    ],
)
def test_each_condition(
    when: dict[str, Any], matching: dict[str, Any], other: dict[str, Any]
) -> None:
    rules = policy((when, "refused"))
    assert decide(document(**matching), rules, mail).fate == "refused"
    assert decide(document(**other), rules, mail) == Decision(
        "store", "default", decide(document(**other), rules, mail).reason
    )


def test_another_kind_of_personal_data_does_not_match() -> None:
    rules = policy(({"personal_data": ["iban"]}, "refused"))
    assert decide(document(text="a@b.org"), rules, mail).rule == "default"


def test_a_reason_names_everything_that_matched() -> None:
    rules = policy(
        (
            {
                "license": "m*",
                "tags": "t",
                "source": "s",
                "subject": "*",
                "min_length": 1,
                "acl": False,
                "personal_data": "any",
            },
            "refused",
        )
    )
    found = decide(document(license="MIT", tags=["t"], source="S", text="a@b"), rules, mail)
    assert found.reason == (
        "its licence is MIT and it is tagged t and its source is S and its subject is d and it is "
        "3 characters long and it has no access groups and it holds personal data (email)"
    )


conditions = st.sampled_from(
    [
        {"license": "*"},
        {"license": ""},
        {"license": "MIT"},
        {"tags": ["a"]},
        {"tags": ["b", "c"]},
        {"subject": "*"},
        {"max_length": 10},
        {"min_length": 4},
        {"personal_data": "any"},
        {"acl": False},
    ]
)
fates = st.sampled_from(["corpus", "store", "refused"])
documents = st.builds(
    document,
    text=st.sampled_from(["short", "a@b.example", "a longer text than that"]),
    license=st.sampled_from(["", "MIT", "unknown"]),
    tags=st.lists(st.sampled_from("abcd"), unique=True).map(tuple),
    acl=st.sampled_from([(), ("hr",)]),
)


@given(st.lists(st.tuples(conditions, fates), max_size=5), documents)
def test_the_first_rule_that_matches_decides(
    rules: list[tuple[dict[str, Any], str]], one: Document
) -> None:
    """Against the definition: the first rule whose own one-rule policy names the document."""
    whole = decide(one, policy(*rules), mail)
    for index, rule in enumerate(rules):
        alone = decide(one, policy(rule), mail)
        if alone.rule != "default":
            assert (whole.fate, whole.reason) == (
                alone.fate,
                alone.reason.replace("'r0'", f"'r{index}'"),
            )
            return
    assert (whole.fate, whole.rule) == ("store", "default")


@given(st.lists(st.tuples(conditions, fates), max_size=5), documents)
def test_no_rules_train_on_a_document_with_access_groups(
    rules: list[tuple[dict[str, Any], str]], one: Document
) -> None:
    decision = decide(one, policy(*rules), mail)
    if one.acl:
        assert decision.fate != "corpus"
    assert decide(one, policy(*rules), mail) == decision


def test_the_ledger_says_why_a_rule_could_not_train_on_it() -> None:
    rules = policy(({"subject": "*"}, "corpus"))
    assert decide(document(acl=["hr", "board"]), rules, nothing) == Decision(
        "store",
        ACCESS_RULE,
        "rule 'r0' would train on it, but it has access groups (hr, board) and an adapter answers "
        "everybody",
    )


def test_the_text_is_never_quoted_in_a_reason() -> None:
    one = document(text="Reach Ann at ann@secret.example", license="MIT")
    reason = decide(one, SeparationPolicy(), mail).reason
    assert "secret" not in reason


def test_the_detector_is_not_asked_where_nothing_depends_on_it() -> None:
    def never(_: str) -> frozenset[str]:
        raise AssertionError("asked")

    rules = policy(({"license": "MIT", "personal_data": "any"}, "store"))
    assert decide(document(license="ISC"), rules, never).rule == "default"
    assert rules.asks_personal_data
    assert not policy(({"license": "MIT"}, "store")).asks_personal_data


def test_no_open_licence_hides_a_restriction() -> None:
    assert not [name for name in OPEN_LICENSES if "nc" in name.split("-") or "*" in name]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"default": "corpus"}, "would train on every document that nobody thought of"),
        ({"rules": [{"name": "a", "when": {}, "then": "store"}]}, "an empty condition matches"),
        (
            {"rules": [{"name": "a", "when": {"acl": True}, "then": "corpus"}]},
            "access groups are no reason to train on a document; use `then: store`, or, for a group",
        ),
        (
            {"rules": [{"name": "default", "when": {"tags": "a"}, "then": "store"}]},
            "the name 'default' is one that the package gives",
        ),
        (
            {"rules": [{"name": "a", "when": {"tags": "a"}, "then": "store"}] * 2},
            "two rules are called 'a'",
        ),
        (
            {"rules": [{"name": "a", "when": {"min_length": 5, "max_length": 4}, "then": "store"}]},
            "no text has at least 5 and at most 4 characters",
        ),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SeparationPolicy.model_validate(values)


def test_a_missing_detector_is_told_with_its_remedy() -> None:
    program = (
        "import sys; sys.modules['presidio_analyzer'] = None\n"
        "from llm_unlearn.documents import Document\n"
        "from llm_unlearn.errors import EnvironmentFailure\n"
        "from llm_unlearn.separation import *\n"
        "try: decide(Document(id='a', text='b'), SeparationPolicy())\n"
        "except EnvironmentFailure as error: print(error.problem); print(error.remedy)\n"
        "rule = Rule(name='a', when=Condition(subject='*'), then='corpus')\n"
        "print(decide(Document(id='a', text='b'), SeparationPolicy(rules=[rule])).fate)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "The separation policy asks for personal data, and its detector is missing (import of "
        "presidio_analyzer halted; None in sys.modules).",
        "Run: pip install 'llm-unlearn[pii]', or drop the rules with `personal_data`.",
        "corpus",
    ]


def test_a_rule_is_built_in_python_too() -> None:
    rule = Rule(name="a", when=Condition(license=("MIT",)), then="corpus")
    assert decide(document(license="MIT"), SeparationPolicy(rules=(rule,))).fate == "corpus"
