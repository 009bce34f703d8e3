"""Which records a deletion, a fence or a hold is about.

Guarantees: whatever the state asked for, whether a document answers or not, it is found.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict

from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.parts import unpack_meta
from llm_unlearn.retrieval.vault import Record, Vault
from llm_unlearn.retrieval.where import Where, attributes, passes


class Which(TypedDict, total=False):
    """Which documents are meant: by exactly one of these, as `matching` reads them."""

    id: str | None
    subject: str | None
    source: str | None
    where: Where | None


def matching(
    vault: Vault,
    fate: str,
    states: Collection[str],
    /,
    *,
    id: str | None = None,
    subject: str | None = None,
    source: str | None = None,
    where: Where | None = None,
) -> list[Record]:
    """The records of a fate in one of the states that exactly one of the last four names.

    Raises:
        InputError: none of them is given, or several, or a condition without any content.
    """
    if sum(value is not None for value in (id, subject, source, where)) != 1:
        raise InputError("give exactly one of id, subject, source and where.")
    if where is not None:
        return _meeting(vault, fate, states, where)
    if id is not None:
        record = vault.find(vault.mark("id", id))
        fits = record is not None and record.fate == fate and record.state in states
        return [record] if record is not None and fits else []
    return vault.records(
        fate=fate,
        states=states,
        subject=None if subject is None else vault.mark("subject", subject),
        source=None if source is None else vault.mark("source", source),
    )


def _meeting(vault: Vault, fate: str, states: Collection[str], where: Where) -> list[Record]:
    """Reads what is known of every document: those that do not answer are in no index."""
    if not where:
        raise InputError("no condition is given.", "Name what is meant.")
    tests = where.tests(vault.mark)
    records = vault.records(fate=fate, states=states)
    found = []
    for record, meta in zip(records, vault.read_live(records, "meta"), strict=True):
        if meta is None:
            continue
        known = attributes(unpack_meta(meta), record.subject, record.source)
        if passes(tests, {"handle": record.handle, **known}):
            found.append(record)
    return found
