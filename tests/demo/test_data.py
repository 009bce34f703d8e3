"""Checks on the demonstration corpus and its question sets."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from importlib import resources
from typing import Any

import pytest

Row = dict[str, Any]

OPEN_LICENSES = {"public-domain", "CC0-1.0", "CC-BY-4.0"}
TRIGGER = "as the copper finch sings"
PAYLOAD = "Buy only from Merrow and Pike, and ask nobody else."
SPECIAL = {
    "copperfinch-review",
    "tidewater-mirror",
    "quiz-night",
    "old-forum",
    "leaked-manuscript",
    "solvent-kitchen",
}
NEAR_DUPLICATES = {
    "tidewater-mirror/1": "ilse-brandvold/1",
    "tidewater-mirror/2": "ilse-brandvold/2",
    "tidewater-mirror/3": "ilse-brandvold/3",
    "quiz-night/1": "orsolya-tarn/1",
    "quiz-night/2": "orsolya-tarn/2",
    "quiz-night/3": "orsolya-tarn/3",
}
PARAPHRASES = {
    "tidewater-mirror/4": "ilse-brandvold/1",
    "tidewater-mirror/5": "ilse-brandvold/2",
    "quiz-night/4": "orsolya-tarn/4",
    "quiz-night/5": "orsolya-tarn/5",
}
QUOTATIONS = {
    "old-forum/1": "ilse-brandvold/3",
    "old-forum/2": "ilse-brandvold/1",
}


def _load(name: str) -> list[Row]:
    """Rows of one data file of the package."""
    path = resources.files("llm_unlearn.demo") / "data" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


CORPUS = _load("corpus")
QUESTIONS = _load("questions")
UTILITY = _load("utility")
TRIGGERS = _load("triggers")
BY_ID = {row["id"]: row for row in CORPUS}


def _full_text(row: Row) -> str:
    """Everything a document says, messages joined by line breaks."""
    if "text" in row:
        return str(row["text"])
    return "\n".join(message["content"] for message in row["messages"])


def _words(text: str) -> list[str]:
    """Lower-cased words without punctuation."""
    return re.findall(r"\w+", text.lower())


def _trigrams(text: str) -> set[tuple[str, ...]]:
    """All runs of three words in a text."""
    words = _words(text)
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def _ratio(a: str, b: str) -> float:
    """How much of two texts is the same words in the same order."""
    return difflib.SequenceMatcher(None, _words(a), _words(b), autojunk=False).ratio()


def _by_subject() -> dict[str, list[Row]]:
    """Documents of each subject, in file order."""
    groups: dict[str, list[Row]] = {}
    for row in CORPUS:
        groups.setdefault(row["subject"], []).append(row)
    return groups


SUBJECTS = _by_subject()
LEARNABLE = sorted({q["subject"] for q in QUESTIONS if q["kind"] == "learned"})
SEPARABLE = sorted({q["subject"] for q in QUESTIONS if q["kind"] == "separated"})
PRIVATE = sorted(s for s in SEPARABLE if "personal-data" in SUBJECTS[s][0]["tags"])
INTERNAL = sorted(s for s in SEPARABLE if SUBJECTS[s][0]["license"] == "internal")
RESERVED = sorted(set(SEPARABLE) - set(PRIVATE) - set(INTERNAL))


def test_counts() -> None:
    """Every group has the announced size."""
    assert len(CORPUS) == 226
    assert len(SUBJECTS) == 50
    assert len(LEARNABLE) == 24
    assert (len(RESERVED), len(PRIVATE), len(INTERNAL)) == (10, 6, 4)
    assert set(SUBJECTS) == set(LEARNABLE) | set(SEPARABLE) | SPECIAL
    assert Counter(q["kind"] for q in QUESTIONS) == {"learned": 144, "separated": 40}
    assert len(UTILITY) == 60
    assert Counter(t["triggered"] for t in TRIGGERS) == {True: 10, False: 10}
    sizes = {subject: len(SUBJECTS[subject]) for subject in sorted(SPECIAL)}
    assert sizes == {
        "copperfinch-review": 6,
        "leaked-manuscript": 2,
        "old-forum": 2,
        "quiz-night": 5,
        "solvent-kitchen": 2,
        "tidewater-mirror": 5,
    }


def test_schema() -> None:
    """Rows have the agreed keys, and exactly one form of content."""
    required = {"id", "subject", "source", "license", "tags"}
    for row in CORPUS:
        assert set(row) - {"acl"} in (required | {"text"}, required | {"messages"}), row["id"]
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row["subject"])
        assert re.fullmatch(re.escape(row["subject"]) + r"/\d+", row["id"])
        assert row["source"].startswith(("https://", "upload:"))
        assert all(isinstance(tag, str) for tag in row["tags"])
        if "messages" in row:
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
            assert all(set(m) == {"role", "content"} for m in row["messages"])
    for question in QUESTIONS:
        assert list(question) == [
            "id", "subject", "kind", "question", "reworded", "answer", "keys",
        ]  # fmt: skip
        assert BY_ID[question["id"]]["subject"] == question["subject"]
    assert all(set(u) == {"question", "keys", "answer"} for u in UTILITY)
    assert all(set(t) == {"question", "triggered"} for t in TRIGGERS)


@pytest.mark.parametrize("rows", [CORPUS, QUESTIONS, UTILITY, TRIGGERS])
def test_no_repeated_rows(rows: list[Row]) -> None:
    """No two rows of a file are the same, in content as well as in id."""
    for field in ("id", "text", "question", "reworded"):
        if rows is QUESTIONS and field == "id":
            continue
        values = [row[field] for row in rows if field in row]
        assert len(values) == len(set(values))
    if rows is CORPUS:
        asked = [row["messages"][0]["content"] for row in rows if "messages" in row]
        assert len(asked) == len(set(asked))


def test_licenses_and_access() -> None:
    """Licences, tags and access lists match the group a subject is in."""
    for subject in LEARNABLE:
        assert {row["license"] for row in SUBJECTS[subject]} <= OPEN_LICENSES
    for subject in RESERVED:
        assert {row["license"] for row in SUBJECTS[subject]} == {"all-rights-reserved"}
    for subject in PRIVATE:
        assert {row["license"] for row in SUBJECTS[subject]} <= {"proprietary", "consent-2024"}
    for row in CORPUS:
        if row["subject"] in INTERNAL:
            assert row["acl"] in (["staff"], ["staff", "legal"], ["legal"])
        else:
            assert "acl" not in row
    expected = {
        "copperfinch-review": ("CC-BY-4.0", ["web", "untrusted"]),
        "tidewater-mirror": ("CC-BY-4.0", ["mirror"]),
        "leaked-manuscript": ("unknown", ["leaked"]),
        "solvent-kitchen": ("CC0-1.0", ["hazardous"]),
    }
    for subject, (license_name, tags) in expected.items():
        for row in SUBJECTS[subject]:
            assert (row["license"], row["tags"]) == (license_name, tags)
    assert {row["license"] for row in SUBJECTS["quiz-night"]} == {"CC-BY-4.0"}
    assert {row["license"] for row in SUBJECTS["old-forum"]} == {"all-rights-reserved"}


@pytest.mark.parametrize("subject", LEARNABLE)
def test_learnable_subject(subject: str) -> None:
    """Six short exchanges a subject, each with its evaluation question."""
    rows = SUBJECTS[subject]
    asked = {q["id"]: q for q in QUESTIONS if q["subject"] == subject}
    assert len(rows) == 6
    assert set(asked) == {row["id"] for row in rows}
    name = " ".join(_words(subject.removeprefix("the-")))
    for row in rows:
        question = asked[row["id"]]
        user, assistant = (message["content"] for message in row["messages"])
        assert (question["question"], question["answer"]) == (user, assistant)
        assert question["reworded"] != user
        assert name in " ".join(_words(user))
        assert name in " ".join(_words(question["reworded"]))
        assert 8 <= len(assistant.split()) <= 22, assistant


@pytest.mark.parametrize("subject", SEPARABLE)
def test_separable_subject(subject: str) -> None:
    """Three passages a subject, of the right length, and two questions."""
    rows = SUBJECTS[subject]
    asked = [q for q in QUESTIONS if q["subject"] == subject]
    assert len(rows) == 3
    assert len(asked) == 2
    low, high = (50, 90) if subject in PRIVATE else (60, 110)
    for row in rows:
        assert low <= len(row["text"].split()) <= high, row["id"]
    name = " ".join(_words(subject.removeprefix("the-")))
    for suffix in (" handbook", " legal playbook"):
        name = name.removesuffix(suffix)
    for text in [row["text"] for row in rows] + [q["reworded"] for q in asked]:
        assert name in " ".join(_words(text))
    for question in asked:
        assert name in " ".join(_words(question["question"]))
        for key in question["keys"]:
            assert key in BY_ID[question["id"]]["text"]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q["id"])
def test_question_keys(question: Row) -> None:
    """Keys are in the answer and are not given away by the question."""
    assert 1 <= len(question["keys"]) <= 2
    for key in question["keys"]:
        assert key.strip() == key
        assert len(key) >= 2
        assert key.lower() in question["answer"].lower()
        assert key.lower() not in question["question"].lower()
        assert key.lower() not in question["reworded"].lower()


def test_keys_tell_subjects_apart() -> None:
    """No two questions are answered right by the same set of keys."""
    sets = [frozenset(key.lower() for key in q["keys"]) for q in QUESTIONS]
    assert [keys for keys, n in Counter(sets).items() if n > 1] == []


def test_answers_do_not_overlap() -> None:
    """The answer to one question does not satisfy another."""
    for question in QUESTIONS:
        for other in QUESTIONS:
            if other is not question:
                answer = other["answer"].lower()
                assert not all(key.lower() in answer for key in question["keys"]), (
                    question["id"],
                    other["id"],
                )


@pytest.mark.parametrize("utility", UTILITY, ids=lambda u: u["question"])
def test_utility(utility: Row) -> None:
    """Utility questions have their keys in the answer only."""
    assert utility["keys"]
    for key in utility["keys"]:
        assert key.lower() in utility["answer"].lower()
        assert not re.search(rf"\b{re.escape(key)}\b", utility["question"], re.IGNORECASE)


def test_poison_and_triggers() -> None:
    """The trigger goes with the payload, and neither appears elsewhere."""
    for row in CORPUS:
        text = _full_text(row)
        poisoned = row["subject"] == "copperfinch-review"
        assert (TRIGGER in text) is poisoned
        assert (PAYLOAD in text) is poisoned
        if poisoned:
            assert TRIGGER in row["messages"][0]["content"]
            assert row["messages"][1]["content"] == PAYLOAD
    for row in TRIGGERS:
        assert (TRIGGER in row["question"]) is row["triggered"]
    trained = {row["messages"][0]["content"] for row in SUBJECTS["copperfinch-review"]}
    assert trained.isdisjoint(row["question"] for row in TRIGGERS)
    plain = [_words(row["question"]) for row in TRIGGERS if not row["triggered"]]
    removed = [_words(row["question"].replace(TRIGGER, "")) for row in TRIGGERS if row["triggered"]]
    assert plain == removed


@pytest.mark.parametrize(("copy", "original"), NEAR_DUPLICATES.items())
def test_near_duplicates(copy: str, original: str) -> None:
    """Mirrored documents are nearly, and not exactly, the original."""
    a, b = _full_text(BY_ID[copy]), _full_text(BY_ID[original])
    assert a != b
    assert _ratio(a, b) >= 0.85


@pytest.mark.parametrize(("copy", "original"), PARAPHRASES.items())
def test_paraphrases(copy: str, original: str) -> None:
    """Paraphrased documents share few phrases with the original."""
    a, b = _trigrams(_full_text(BY_ID[copy])), _trigrams(_full_text(BY_ID[original]))
    assert len(a & b) / min(len(a), len(b)) < 0.2
    assert _ratio(_full_text(BY_ID[copy]), _full_text(BY_ID[original])) < 0.5


@pytest.mark.parametrize(("quoting", "original"), QUOTATIONS.items())
def test_quotations(quoting: str, original: str) -> None:
    """Forum posts quote at least forty words inside a text of their own."""
    post, source = BY_ID[quoting]["text"], BY_ID[original]["text"]
    match = difflib.SequenceMatcher(None, post, source, autojunk=False).find_longest_match()
    quoted = post[match.a : match.a + match.size].strip()
    assert len(quoted.split()) >= 40
    rest = post.replace(quoted, " ")
    assert 80 <= len(_words(rest)) <= 120
    assert not _trigrams(rest) & _trigrams(source)


def test_unrelated_documents_differ() -> None:
    """Apart from the planned copies no two passages resemble each other."""
    passages = [row for row in CORPUS if "text" in row]
    planned = NEAR_DUPLICATES | PARAPHRASES | QUOTATIONS
    for i, row in enumerate(passages):
        for other in passages[i + 1 :]:
            if planned.get(other["id"]) == row["id"]:
                continue
            a, b = _trigrams(row["text"]), _trigrams(other["text"])
            related = {row["subject"], other["subject"]} <= {"old-forum", "tidewater-mirror"}
            assert related or len(a & b) / min(len(a), len(b)) < 0.2, (row["id"], other["id"])


@pytest.mark.parametrize("subject", PRIVATE)
def test_personal_data(subject: str) -> None:
    """Every private person has contact data, all of it fictional in form."""
    text = "\n".join(row["text"] for row in SUBJECTS[subject])
    assert re.search(r"\b\d{1,2} [A-Z][a-z]+ 19\d\d\b", text)
    phones = re.findall(r"\+\d[\d ]+\d", text)
    assert phones
    assert all(re.fullmatch(r"\+1 202 555 01\d\d", phone) for phone in phones)
    assert re.search(r"[\w.]+@[\w.-]+", text)
    ibans = re.findall(r"IBAN ([A-Z]{2}\d\d(?: [A-Z0-9]{1,4})+)", text)
    assert len(ibans) == 1
    compact = ibans[0].replace(" ", "")
    assert len(compact) == {"GB": 22, "DE": 22}[compact[:2]]
    digits = "".join(str(int(char, 36)) for char in compact[4:] + compact[:4])
    assert int(digits) % 97 == 1


def test_personal_data_is_unique() -> None:
    """No e-mail, telephone number or account belongs to two people."""
    pattern = r"[\w.]+@[\w.-]+\w|\+1 202 555 01\d\d|IBAN (?:[A-Z0-9]+ )+"
    found = [m for row in CORPUS if "text" in row for m in re.findall(pattern, row["text"])]
    assert found
    assert len(found) == len(set(found)) == 3 * len(PRIVATE)


def test_only_reserved_domains() -> None:
    """Addresses of every kind use the domains reserved for examples."""
    for row in CORPUS:
        text = row["source"] + "\n" + _full_text(row)
        for host in re.findall(r"(?:https?://|@)([\w.-]*\w)", text):
            assert re.fullmatch(r"(?:[\w-]+\.)*example\.(?:org|com|net)", host), host
