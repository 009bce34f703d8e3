"""Which documents a search or a deletion is about: conditions on what is known of them.

Guarantees: a condition is checked before the search, never after it; every one that is given must
hold. It does not say who may see what: groups do (`query.access`).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.parts import Meta
from llm_unlearn.retrieval.rows import Domain
from llm_unlearn.retrieval.visibility import Test, Wanted, any_of

Mark = Callable[[Domain, str], bytes]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Conditions; one left out holds for every document.

    Args:
        ids, subjects, sources, licenses: the document's is one of these. Subjects count as the same
            whatever their case and white space, ids and sources whatever their Unicode form.
        tags: it has one of these.
        since, until: it has a date, and that is not before `since` and not after `until`.
        metadata: for each key, its value is the one given, or equals one of a list given; a value
            that is a list itself matches by any of its elements. No key holds for every document.

    Raises:
        InputError: a single string where several values belong, or a date of another type.
    """

    ids: Collection[str] | None = None
    subjects: Collection[str] | None = None
    sources: Collection[str] | None = None
    licenses: Collection[str] | None = None
    tags: Collection[str] | None = None
    since: datetime.date | None = None
    until: datetime.date | None = None
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "subjects", "sources", "licenses", "tags"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(v, str) for v in values or ()):
                raise InputError(f"{name} must be a collection of names, not {values!r}.")
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None and type(value) is not datetime.date:
                raise InputError(f"{name}={value!r} is not a date.", "Give a datetime.date.")

    def __bool__(self) -> bool:
        """Whether any condition is given; no key of metadata is none."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return bool(given.pop("metadata")) or any(value is not None for value in given.values())

    def tests(self, mark: Mark) -> dict[str, Test | Wanted]:
        """The conditions by attribute (`attributes`), for masks."""
        tests: dict[str, Test | Wanted] = {}
        if self.ids is not None:
            tests["handle"] = frozenset(mark("id", value) for value in self.ids)
        if self.subjects is not None:
            tests["subject"] = frozenset(mark("subject", value) for value in self.subjects)
        if self.sources is not None:
            tests["source"] = frozenset(mark("source", value) for value in self.sources)
        if self.licenses is not None:
            tests["license"] = frozenset(self.licenses)
        if self.tags is not None:
            tests["tags"] = any_of(self.tags)
        if self.since is not None or self.until is not None:
            tests["date"] = self._dated
        if self.metadata is not None:
            tests["metadata"] = _has(self.metadata)
        return tests

    def _dated(self, value: Hashable) -> bool:
        # ISO dates of four-digit years are ordered as strings.
        first = self.since.isoformat() if self.since else ""
        last = self.until.isoformat() if self.until else "9999-12-31"
        return bool(value) and first <= str(value) <= last


def attributes(meta: Meta, subject: bytes, source: bytes) -> dict[str, Hashable]:
    """What the tests of `Where` look at, besides the handle; `subject` and `source` are marks."""
    return {
        "subject": subject,
        "source": source,
        "license": meta.license,
        "tags": meta.tags,
        "date": meta.date,
        "metadata": frozenset(
            (key, _plain(item))
            for key, value in meta.metadata.items()
            for item in (value if isinstance(value, list) else [value])
        ),
    }


def passes(tests: Mapping[str, Test | Wanted], values: Mapping[str, Hashable]) -> bool:
    """Whether one document's attributes pass every test."""
    return all(
        values[name] in test if isinstance(test, frozenset) else test(values[name])
        for name, test in tests.items()
    )


def _has(wanted: Mapping[str, Any]) -> Test:
    pairs = [
        {(key, _plain(item)) for item in (value if isinstance(value, list | tuple) else [value])}
        for key, value in wanted.items()
    ]

    def test(values: Hashable) -> bool:
        assert isinstance(values, frozenset)
        return all(not options.isdisjoint(values) for options in pairs)

    return test


def _plain(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"the metadata value {value!r} is not JSON.") from error
