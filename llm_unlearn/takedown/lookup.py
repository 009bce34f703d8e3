"""Which documents a request names: by subject, id, source, or by their very words.

Guarantees: documents are found in records that are there (live, fenced or held); `look_up` reads the
database's indexes, so that its time does not grow with the vault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_unlearn.documents import normalise
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.opened import Opened
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.takedown.request import Request

THERE = ("live", "fenced", "held")
"""States of documents that have not been removed."""


@dataclass(frozen=True)
class Lookup:
    """Records by what requests name them by."""

    subjects: Mapping[bytes, Sequence[Record]]
    sources: Mapping[bytes, Sequence[Record]]
    handles: Mapping[bytes, Record]

    @classmethod
    def over(cls, records: Sequence[Record]) -> Lookup:
        """Index records."""
        subjects: dict[bytes, list[Record]] = defaultdict(list)
        sources: dict[bytes, list[Record]] = defaultdict(list)
        for record in records:
            subjects[record.subject].append(record)
            sources[record.source].append(record)
        return cls(subjects, sources, {record.handle: record for record in records})

    def named(self, opened: Opened, request: Request) -> list[Record]:
        """Every record that a request names, by handle.

        Raises:
            NotFound: it names a subject, id or source that none has.
        """
        mark = opened.vault.mark
        chosen: dict[bytes, Record] = {}
        if request.subject:
            found = self.subjects.get(mark("subject", request.subject), ())
            _some(found, "subject", request.subject)
            chosen |= {r.handle: r for r in found}
        for name in request.ids:
            match = self.handles.get(mark("id", name))
            _some([match] if match else (), "id", name)
            if match:
                chosen[match.handle] = match
        if request.source:
            found = self.sources.get(mark("source", request.source), ())
            _some(found, "source", request.source)
            chosen |= {r.handle: r for r in found}
        return [chosen[handle] for handle in sorted(chosen)]


def look_up(opened: Opened, request: Request) -> list[Record]:
    """The same from the database's indexes, for one request: its time does not grow with the vault.

    Exact copies by the whole normalised text are among them.

    Raises:
        NotFound: it names a subject, id or source that none has.
        InputError: it names nothing.
    """
    vault, mark = opened.vault, opened.vault.mark
    chosen: dict[bytes, Record] = {}
    if request.subject:
        found = vault.records(states=THERE, subject=mark("subject", request.subject))
        _some(found, "subject", request.subject)
        chosen |= {r.handle: r for r in found}
    for name in request.ids:
        match = vault.find(mark("id", name))
        _some([match] if match and match.state in THERE else (), "id", name)
        if match:
            chosen[match.handle] = match
    if request.source:
        found = vault.records(states=THERE, source=mark("source", request.source))
        _some(found, "source", request.source)
        chosen |= {r.handle: r for r in found}
    if not chosen and not request.text:
        raise InputError(
            "The request names nothing to remove.", "Give a subject, an id, a source or a text."
        )
    contents = {record.content for record in chosen.values() if record.fate != "refused"}
    if request.text:
        contents.add(mark("content", normalise(request.text)))
    for content in contents:
        chosen |= {r.handle: r for r in vault.records(states=THERE, content=content)}
    return [chosen[handle] for handle in sorted(chosen)]


def _some(found: Sequence[Record], what: str, name: str) -> None:
    if not found:
        raise NotFound(
            f"No live document has the {what} {name!r}.",
            "Look at the ids and subjects in your own records; this workspace lists none in clear."
            if what == "subject"
            else "Nothing was changed.",
        )
