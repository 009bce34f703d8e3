"""What makes a document, and what is refused."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydantic import ValidationError

from llm_unlearn.documents import Document
from llm_unlearn.retrieval.parts import content_of, pack_body, pack_meta, unpack_body, unpack_meta


def make(**fields: Any) -> Document:
    return Document(id="a", text="Some words.", **fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"date": 20240101}, "YYYY-MM-DD"),
        ({"date": "soon"}, "valid date"),
        ({"metadata": {"x": float("nan")}}, "not finite"),
        ({"metadata": {"x": "\ud800"}}, "UTF-8"),
        ({"metadata": {"x": "y" * 70_000}}, "more than 65536"),
        ({"metadata": {"x": {1, 2}}}, "metadata"),
        ({"metadata": {"": 1}}, "at least 1"),
        ({"metadata": [1]}, "dictionary"),
    ],
)
def test_dates_and_metadata_that_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        make(**fields)


def test_date_and_metadata_survive_sealing() -> None:
    document = make(date="2024-02-29", metadata={"page": 3, "deep": {"list": [1, None, True]}})
    assert document.date == date(2024, 2, 29)
    assert unpack_body(pack_body(document)) == document
    meta = unpack_meta(pack_meta(document, "rule", "reason"))
    assert (meta.date, meta.metadata) == ("2024-02-29", document.metadata)


def test_a_document_without_them_keeps_the_bytes_it_had() -> None:
    """Records written before these fields were known still count as the same document."""
    assert pack_body(make()) == (
        b'{"id":"a","text":"Some words.","messages":[],"subject":"a","source":"","license":"",'
        b'"tags":[],"acl":[]}'
    )
    assert b"metadata" not in pack_meta(make(), "", "")


def test_content_is_read_from_a_body_without_building_the_document() -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    for document in (make(), Document.model_validate({"id": "b", "messages": turns})):
        assert content_of(pack_body(document)) == document.content
