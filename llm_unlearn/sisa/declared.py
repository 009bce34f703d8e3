"""What a document declares of itself: its group and its deletion risk, read from tags and access groups.

Guarantees: a pure function of the document and the recipe's placement rules; a document that a rule
refuses is refused with one line, by name, when it is ingested or when the rule is adopted, and never
trained on. The declarations lie sealed in the document's part `meta` and die with its key.

Cost: under the default rule (all by keyed hash) nothing is read. Else one small part is decrypted for each
training document, once a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from llm_unlearn.config_placement import PlacementConfig
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.parts import unpack_meta
from llm_unlearn.retrieval.vault import Record, Vault
from llm_unlearn.sisa.layout import UNDECLARED, Declared

_RISK = "risk"


class About(Protocol):
    """What is known of a document besides its text; `Document` and `Meta` have these."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""

    @property
    def acl(self) -> tuple[str, ...]:
        """Its access groups."""


def declared(about: About, placement: PlacementConfig) -> Declared:
    """What a training document declares.

    Raises:
        InputError: it has access groups that have no shard of their own; it declares two groups or
            two risks, a group that `unnamed_groups: refuse` keeps out, or a risk that is none.
    """
    if about.acl and not (len(about.acl) == 1 and about.acl[0] in placement.own_shards):
        raise InputError(
            f"Document {about.id!r} has the access groups {', '.join(about.acl)} and no shard is "
            "theirs alone, so it cannot be trained on.",
            "Let a rule of `separation` send it to the store, or give its one group a shard "
            "(training.placement.groups with group_by: acl).",
        )
    group = None
    if placement.shard_by == "group":
        names = about.acl if placement.group_by == "acl" else _values(about, placement.group_tag)
        group = _one(about, names, "groups")
        if placement.unnamed_groups == "refuse" and group not in placement.groups:
            said = f"declares the group {group!r}" if group else "declares no group"
            raise InputError(
                f"Document {about.id!r} {said}, and training.placement trains on "
                f"{', '.join(sorted(placement.groups))} only.",
                "Name the group there, or set unnamed_groups: hash.",
            )
    risk = _one(about, _values(about, _RISK), "risks") if placement.asks_risk else None
    return Declared(group, 0.0 if risk is None else _risk(about, risk))


def agree(first: Declared, second: Declared, one: str, other: str, subject: str) -> None:
    """See that two documents of a subject train in one place.

    Raises:
        InputError: they declare different groups or risks.
    """
    if first == second:
        return
    what, a, b = (
        ("groups", first.group, second.group)
        if first.group != second.group
        else ("risks", first.risk, second.risk)
    )
    raise InputError(
        f"The subject {subject!r} declares two {what}: {a} in document {one!r}, {b} in {other!r}.",
        "A subject trains in one place, so that one demand touches one shard: make them agree, or "
        "give the documents subjects of their own.",
    )


class Declarations:
    """What the training documents of a vault declare, kept in memory while they are live."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._placement = PlacementConfig()
        self._known: dict[tuple[bytes, int], Declared | None] = {}

    def of(
        self, records: Sequence[Record], placement: PlacementConfig
    ) -> Mapping[bytes, Declared | None]:
        """By handle; None for one that has no place by these rules, or was deleted meanwhile.

        Empty when no rule asks for anything.
        """
        if not placement.asks:
            return {}
        if placement != self._placement:
            self._placement, self._known = placement, {}
        wanted = {(record.handle, record.slot): record for record in records}
        new = [record for key, record in wanted.items() if key not in self._known]
        found = {key: self._known[key] for key in wanted if key in self._known}
        for record, data in zip(new, self._vault.read_live(new, "meta"), strict=True):
            found[record.handle, record.slot] = None if data is None else self._read(data)
        self._known = found  # what is not live any more is forgotten here too
        return {handle: said for (handle, _), said in found.items()}

    def one(self, record: Record, placement: PlacementConfig) -> Declared | None:
        """The same for one record, read anew."""
        if not placement.asks:
            return UNDECLARED
        (meta,) = self._vault.read_live([record], "meta")
        try:
            return None if meta is None else declared(unpack_meta(meta), placement)
        except InputError:
            return None

    def _read(self, meta: bytes) -> Declared | None:
        try:
            return declared(unpack_meta(meta), self._placement)
        except InputError:
            return None


def check_all(vault: Vault, placement: PlacementConfig) -> None:
    """See that every training document has a place by these rules, and each subject one.

    For the moment when rules are adopted; `ingest` checks what comes after. Fenced ones count: they are
    live again when the request is refused.

    Raises:
        InputError: naming the first that has none.
    """
    records = vault.records(fate="corpus", states=("live", "held", "fenced"))
    first: dict[bytes, tuple[Declared, str]] = {}
    for record, meta in zip(records, vault.read_live(records, "meta"), strict=True):
        if meta is None:
            continue  # fenced, and its key destroyed by a takedown that is not finished
        about = unpack_meta(meta)
        said, name = first.setdefault(record.subject, (declared(about, placement), about.id))
        agree(said, declared(about, placement), name, about.id, about.subject)


def of_subject(
    vault: Vault, subject: str, placement: PlacementConfig
) -> tuple[Declared, str] | None:
    """What the training documents of a subject that are here declare, and the id of one of them."""
    mark = vault.mark("subject", subject)
    states = ("live", "held", "fenced", "staged")
    records = vault.records(fate="corpus", subject=mark, states=states)
    for meta in vault.read_live(records, "meta"):
        if meta is not None:
            about = unpack_meta(meta)
            return declared(about, placement), about.id
    return None


def _values(about: About, prefix: str) -> list[str]:
    found = (tag.partition(":") for tag in about.tags)
    return [value.strip() for name, colon, value in found if colon and name.strip() == prefix]


def _one(about: About, values: Iterable[str], what: str) -> str | None:
    distinct = sorted(set(values))
    if len(distinct) > 1:
        raise InputError(
            f"Document {about.id!r} declares two {what}: {', '.join(distinct)}.", "Give it one."
        )
    return distinct[0] if distinct else None


def _risk(about: About, value: str) -> float:
    try:
        risk = float(value)
    except ValueError:
        risk = -1.0
    if not 0 <= risk <= 1:
        raise InputError(
            f"Document {about.id!r} declares the risk {value!r}.",
            "Give a probability between 0 and 1, such as risk:0.2.",
        )
    return risk


__all__ = [
    "UNDECLARED",
    "Declarations",
    "Declared",
    "agree",
    "check_all",
    "declared",
    "of_subject",
]
