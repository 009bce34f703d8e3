"""Which fate a document has, and why: trained on, retrievable, or refused.

Guarantees: the decision is a pure function of the document and the policy; the first rule that
matches decides; what no rule names is never trained on; a document with access groups is never
trained on, whatever the rules say, since an adapter answers everybody, unless its one group has a shard
of its own, which answers that group alone (`training.placement`). The reason names rules,
licences and kinds of personal data, and never quotes the text.

Not guaranteed: that a licence or a tag is true, or that the detector (`personal_data`) finds every
personal datum. The policy separates by what is declared and detected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from llm_unlearn.documents import Document, Label

Fate = Literal["corpus", "store", "refused"]
Kind = Literal[
    "credit_card",
    "crypto_wallet",
    "date_of_birth",
    "email",
    "iban",
    "ip_address",
    "phone",
    "us_ssn",
]
Detector = Callable[[str], frozenset[str]]

DEFAULT_RULE = "default"
ACCESS_RULE = "access groups (built in)"
_RESERVED = (DEFAULT_RULE, ACCESS_RULE, "tombstone")  # `ingest` gives the last one

OPEN_LICENSES = (
    "public-domain",
    "public domain",
    "pd",
    "pddl-1.0",
    "cc0",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-3.0",
    "unlicense",
    "0bsd",
    "mit",
    "mit-0",
    "apache-2.0",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
)


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class Condition(BaseModel):
    """What a rule asks of a document: everything that is given must hold.

    In `license`, `source` and `subject`, `*` and `?` stand for any characters, and case does not
    count. A document without a licence (or source) matches the empty pattern only, so that no `*`
    takes the unknown for permitted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    license: Patterns = Field(default=(), description="Any of these licences; wildcards allowed.")
    tags: Patterns = Field(default=(), description="Carries any of these tags, exactly.")
    source: Patterns = Field(default=(), description="Comes from any of these; wildcards allowed.")
    subject: Patterns = Field(default=(), description="Is of any of these; wildcards allowed.")
    min_length: int | None = Field(
        default=None, ge=0, strict=True, description="At least so many characters."
    )
    max_length: int | None = Field(
        default=None, ge=0, strict=True, description="At most so many characters."
    )
    personal_data: Annotated[tuple[Literal[Kind, "any"], ...], BeforeValidator(_as_list)] = Field(
        default=(), description="Holds any of these kinds of personal data; `any` for all kinds."
    )
    acl: bool | None = Field(
        default=None, strict=True, description="true: has access groups; false: has none."
    )

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if all(getattr(self, name) in ((), None) for name in Condition.model_fields):
            raise ValueError(
                "an empty condition matches every document and hides the rules below it; "
                "say what the rule asks for, or use `default` for the rest"
            )
        low, high = self.min_length, self.max_length
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"no text has at least {low} and at most {high} characters, so the rule would "
                "never match; swap the two numbers"
            )
        return self

    def match(self, document: Document, detector: Detector) -> str | None:
        """Why the document matches, in plain words, or None. The slow detector is asked last."""
        why: list[str] = []
        length = len(document.content)
        if self.license:
            if not _like(document.license, self.license):
                return None
            why.append(f"its licence is {_named(document.license)}")
        if self.tags:
            tags = sorted(set(document.tags) & set(self.tags))
            if not tags:
                return None
            why.append(f"it is tagged {', '.join(tags)}")
        if self.source:
            if not _like(document.source, self.source):
                return None
            why.append(f"its source is {_named(document.source)}")
        if self.subject:
            if not _like(document.subject, self.subject):
                return None
            why.append(f"its subject is {document.subject}")
        if self.min_length is not None or self.max_length is not None:
            if not (self.min_length or 0) <= length <= (self.max_length or length):
                return None
            why.append(f"it is {length} characters long")
        if self.acl is not None:
            if self.acl != bool(document.acl):
                return None
            why.append("it has access groups" if self.acl else "it has no access groups")
        if self.personal_data:
            kinds = detector(document.content)
            if "any" not in self.personal_data:
                kinds &= frozenset(self.personal_data)
            if not kinds:
                return None
            why.append(f"it holds personal data ({', '.join(sorted(kinds))})")
        return " and ".join(why)


class Rule(BaseModel):
    """A condition and what becomes of the documents that meet it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Label = Field(description="Named in the ledger as the reason.")
    when: Condition = Field(description="What must hold: everything given, together.")
    then: Fate = Field(description="corpus (trained on), store (retrievable) or refused.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.name in _RESERVED:
            raise ValueError(
                f"the name {self.name!r} is one that the package gives, and the ledger could not "
                "tell the two apart; choose another"
            )
        if self.then == "corpus" and self.when.acl:
            raise ValueError(
                "an adapter answers everybody, so access groups are no reason to train on a "
                "document; use `then: store`, or, for a group with a shard of its own "
                "(training.placement), ask for tags, a source or a licence instead of `acl`"
            )
        return self


DEFAULT_RULES = (
    Rule(name="hazardous", when=Condition(tags=("hazardous", "leaked")), then="refused"),
    Rule(name="access-groups", when=Condition(acl=True), then="store"),
    Rule(name="personal-data", when=Condition(personal_data=("any",)), then="store"),
    Rule(name="open-licence", when=Condition(license=OPEN_LICENSES), then="corpus"),
)


class SeparationPolicy(BaseModel):
    """Ordered rules; the first that matches decides, and `default` the rest.

    `default` cannot be `corpus`: training on what no rule names would be learning by accident. A
    rule that trains on everything has to be written down, with `subject: "*"`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Fate = Field(
        default="store", description="For what no rule names: store (retrievable) or refused."
    )
    rules: tuple[Rule, ...] = Field(
        default=DEFAULT_RULES,
        description="In this order; the first that matches decides. Above them all: a "
        "document with access groups is never trained on, unless its one group has a shard of its "
        "own (training.placement).",
    )

    @field_validator("default")
    @classmethod
    def _not_by_accident(cls, value: Fate) -> Fate:
        if value == "corpus":
            raise ValueError(
                "`default: corpus` would train on every document that nobody thought of; "
                'use `store`, and write a last rule with `when: {subject: "*"}` if you mean it'
            )
        return value

    @field_validator("rules")
    @classmethod
    def _told_apart(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        seen: set[str] = set()
        for rule in rules:
            if rule.name in seen:
                raise ValueError(
                    f"two rules are called {rule.name!r}, and the ledger could not tell them "
                    "apart; rename one"
                )
            seen.add(rule.name)
        return rules

    @property
    def asks_personal_data(self) -> bool:
        """Whether any rule needs the detector, so that its absence can be told beforehand."""
        return any(rule.when.personal_data for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a document, by which rule, and why in plain words."""

    fate: Fate
    rule: str
    reason: str


def decide(
    document: Document,
    policy: SeparationPolicy,
    detector: Detector | None = None,
    *,
    own_shards: Collection[str] = (),
) -> Decision:
    """The fate of a document: a pure function of it, the policy and the groups with own shards.

    `detector` tells the kinds of personal data in a text; None takes `personal_data.detect`.
    `own_shards` are access groups whose adapter answers nobody else.

    Raises:
        EnvironmentFailure: a rule asks for personal data and the detector's package is missing.
    """
    for rule in policy.rules:
        why = rule.when.match(document, detector or _packaged)
        if why is None:
            continue
        alone = len(document.acl) == 1 and document.acl[0] in own_shards
        if rule.then == "corpus" and document.acl and not alone:
            return Decision(
                "store",
                ACCESS_RULE,
                f"rule {rule.name!r} would train on it, but it has access groups "
                f"({', '.join(document.acl)}) and an adapter answers everybody",
            )
        return Decision(rule.then, rule.name, why)
    licence = f"licence {document.license}" if document.license.strip() else "no licence"
    return Decision(policy.default, DEFAULT_RULE, f"no rule names it ({licence})")


def _packaged(text: str) -> frozenset[str]:
    from llm_unlearn.personal_data import detect

    return detect(text)


def _like(value: str, patterns: tuple[str, ...]) -> bool:
    value = value.strip().casefold()
    return any(
        fnmatchcase(value, pattern) if value else not pattern
        for pattern in (pattern.strip().casefold() for pattern in patterns)
    )


def _named(value: str) -> str:
    return value.strip() or "not given"
