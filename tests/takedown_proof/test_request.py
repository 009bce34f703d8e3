"""Requests: the examples load, what the law asks for is asked for, mistakes are named."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.takedown.request import Request, read_request, read_requests, request_schema

EXAMPLES = Path(__file__).parents[2] / "configs" / "requests"

DMCA: dict[str, Any] = {
    "id": "N-1",
    "kind": "dmca",
    "basis": "17 USC 512(c)(3)",
    "claimant": {"name": "A Press", "contact": "a@press.example", "capacity": "agent"},
    "work": "A novel",
    "subject": "novel",
    "statements": {"good_faith": True, "accurate_and_authorised": True, "signature": "/A/"},
    "received": "2031-03-04T09:12:00Z",
}


@pytest.mark.parametrize(("name", "count"), [("dmca", 1), ("gdpr", 1), ("internal", 2)])
def test_the_examples_load(name: str, count: int) -> None:
    found = read_requests(EXAMPLES / f"{name}.yaml")
    assert len(found) == count
    assert {request.kind for request in found} == {name}


def test_the_published_schema_is_current() -> None:
    assert json.loads((EXAMPLES / "request.schema.json").read_text()) == request_schema()


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([DMCA, DMCA | {"id": "N-2"}]))
    assert [request.id for request in read_requests(path)] == ["N-1", "N-2"]
    with pytest.raises(InputError, match="holds 2 requests"):
        read_request(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"work": " "}, "must also give: work"),
        (
            {"statements": {}},
            "good_faith, statements.accurate_and_authorised, statements.signature",
        ),
        ({"subject": None}, "names nothing to remove"),
        ({"subject": None, "text": " "}, "text is blank"),
        ({"ids": ["a", "a"]}, "one document twice"),
        ({"received": "2031-03-04T09:12:00"}, "received: .*timezone"),
        ({"due": "2031-03-03"}, "due .2031-03-03. lies before received"),
        ({"kind": "gdpr"}, "basis naming Article 17"),
        ({"kind": "letter"}, "kind: "),
        ({"claimant": {"name": "A"}}, "claimant.contact: "),
        ({"nonsense": 1}, "nonsense: "),
        ({"id": ""}, "id: "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(DMCA | change))
    with pytest.raises(InputError, match=said) as caught:
        read_request(path)
    assert "r.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Input should be"),
        (b"[]", "holds no request"),
        (b"a: [", "line 1"),
        (b"id: x\nid: y\n", "line 2: the key 'id' is given twice"),
        (b"\xff\xfe\x00", "cannot be parsed|Input should be|unacceptable"),
        (b"!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"[" * 5000, "cannot be parsed"),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=said):
        read_requests(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        read_requests(tmp_path / "none.yaml")


def test_ids_are_unique_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump([DMCA, DMCA]))
    with pytest.raises(InputError, match="request 2: the id 'N-1' occurs twice"):
        read_requests(path)


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ("2031-01-31T23:59:59+01:00", date(2031, 2, 28)),
        ("2032-01-31T00:00:00Z", date(2032, 2, 29)),
        ("2031-12-15T00:00:00Z", date(2032, 1, 15)),
        ("2031-01-31T23:59:59-01:00", date(2031, 3, 1)),  # 1 February in UTC
    ],
)
def test_erasure_is_due_in_a_month(received: str, due: date) -> None:
    """GDPR Article 12(3); Regulation 1182/71 Article 3(2)(c): the last day if there is no such."""
    gdpr = DMCA | {"kind": "gdpr", "basis": "GDPR Article 17(1)(b)", "received": received}
    assert Request.model_validate(gdpr).deadline == due
    longer = gdpr | {"due": "2032-04-01"}
    assert Request.model_validate(longer).deadline == date(2032, 4, 1)
    assert Request.model_validate(DMCA).deadline is None


def test_the_operators_own() -> None:
    before = datetime.now(UTC)
    made = Request.internal(subject="s", ids=["b", "a"], reason="licence ended")
    assert made.received >= before
    assert made.id != Request.internal(subject="s").id
    assert made.selectors() == {"subject": "s", "ids": ["a", "b"], "source": None, "text": None}
    assert Request.internal(subject="s", id="I-1").id == "I-1"
    with pytest.raises(InputError, match="names nothing"):
        Request.internal()


def test_requests_are_frozen() -> None:
    request = Request.model_validate(DMCA)
    with pytest.raises(ValidationError):
        request.id = "other"  # type: ignore[misc]
    assert request.received_text() == "2031-03-04T09:12:00Z"
