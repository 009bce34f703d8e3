"""A request to take text down: a DMCA notice, a GDPR erasure request, or the operator's own wish.

Guarantees: a `Request` that exists names what to remove, and says what the law asks such a request
to say before anyone need act on it (17 USC 512(c)(3)(A); GDPR Articles 12 and 17). It does not
judge whether the statements are true.

Files are YAML or JSON, one request or a list of them; `request_schema` is their JSON schema, and
examples stand in `configs/requests/`.
"""

from __future__ import annotations

import calendar
import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_unlearn.documents import Name, normalise
from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.takedown.receipt import timestamp

_ARTICLE_17: Final = re.compile(r"\bart\w*\.?\s*17\b", re.IGNORECASE)
_MAX_BYTES: Final = 64 * 1024 * 1024


class Claimant(BaseModel):
    """Who asks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="full name of the person or company")
    contact: Name = Field(description="where an answer reaches them: e-mail, telephone or address")
    capacity: Literal["owner", "agent", "data subject", "representative", "operator"] = Field(
        description="in what right: owner of the work or their agent; the person the data is "
        "about or their representative; the operator of the workspace"
    )


class Statements(BaseModel):
    """What the claimant declares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    good_faith: bool = Field(
        False,
        description="a good-faith belief that the use is not authorised by the owner, its agent "
        "or the law: 17 USC 512(c)(3)(A)(v)",
    )
    accurate_and_authorised: bool = Field(
        False,
        description="the notice is accurate and, under penalty of perjury, the claimant may act "
        "for the owner: 17 USC 512(c)(3)(A)(vi)",
    )
    signature: str = Field(
        "", max_length=512, description="physical or electronic: 17 USC 512(c)(3)(A)(i)"
    )


class Request(BaseModel):
    """One demand, as received.

    What to remove is everything that `subject`, `ids`, `source` or `text` names, and its copies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name = Field(description="the sender's or the operator's own number; done once per id")
    kind: Literal["dmca", "gdpr", "internal"] = Field(description="what kind of request")
    basis: Name = Field(
        description="the legal ground, such as '17 USC 512(c)(3)' or 'GDPR Article 17(1)(b)'; for "
        "an internal one the reason"
    )
    claimant: Claimant = Field(description="who asks")
    work: str = Field("", max_length=4096, description="the work or person, in words")
    subject: Name | None = Field(None, description="the subject to remove, all of it")
    ids: tuple[Name, ...] = Field((), description="documents to remove, by id")
    source: Name | None = Field(None, description="remove everything from this URL or file")
    text: str | None = Field(
        None, min_length=1, description="the text itself or a passage of it; its copies go"
    )
    names: tuple[Name, ...] = Field(
        (),
        description="other names of the subject, such as a pen name: the chat declines questions "
        "that hold one; nothing is removed by them",
    )
    statements: Statements = Field(Statements(), description="what the claimant declares")
    received: AwareDatetime = Field(description="when it arrived, with time zone")
    due: date | None = Field(
        None,
        description="when it must be done. GDPR: one month after receipt unless given "
        "(Article 12(3)); DMCA asks for 'expeditiously' and sets no day",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not (self.subject or self.ids or self.source or self.text):
            raise ValueError("it names nothing to remove: give subject, ids, source or text")
        if self.text is not None and not self.text.strip():
            raise ValueError("text is blank")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("ids names one document twice")
        missing = [what for what, there in self._asked().items() if not there]
        if missing:
            raise ValueError(f"a {self.kind} request must also give: {', '.join(missing)}")
        received = self.received.astimezone(UTC).date()
        if self.due is not None and self.due < received:
            raise ValueError(f"due ({self.due}) lies before received ({received})")
        return self

    def _asked(self) -> dict[str, bool]:
        """What a request of this kind must say besides what every one must, and whether it does."""
        if self.kind == "dmca":
            return {
                "work": bool(self.work.strip()),
                "statements.good_faith": self.statements.good_faith,
                "statements.accurate_and_authorised": self.statements.accurate_and_authorised,
                "statements.signature": bool(self.statements.signature.strip()),
            }
        if self.kind == "gdpr":
            return {"basis naming Article 17": bool(_ARTICLE_17.search(self.basis))}
        return {}

    @classmethod
    def internal(
        cls,
        *,
        subject: str | None = None,
        ids: Sequence[str] = (),
        source: str | None = None,
        text: str | None = None,
        names: Sequence[str] = (),
        id: str | None = None,
        reason: str = "operator's decision",
    ) -> Request:
        """A request of the operator's own, received now; `id` is random unless given.

        Raises:
            InputError: it names nothing, or a value is not usable.
        """
        try:
            return cls(
                id=id or f"internal-{secrets.token_hex(8)}",
                kind="internal",
                basis=reason,
                claimant=Claimant(name="operator", contact="operator", capacity="operator"),
                subject=subject,
                ids=tuple(ids),
                source=source,
                text=text,
                names=tuple(names),
                received=datetime.now(UTC),
            )
        except ValidationError as error:
            raise InputError(f"the request cannot be used: {_said(error)}.") from error

    def selectors(self) -> dict[str, str | list[str] | None]:
        """How it names what to remove; what the receipt commits to."""
        return {
            "subject": self.subject,
            "ids": sorted(self.ids),
            "source": self.source,
            "text": self.text,
        }

    def asks(self) -> tuple[object, ...]:
        """All that decides what is done; two requests that ask for the same are one said twice."""
        return (self.selectors(), sorted(self.names))

    def received_text(self) -> str:
        """When it arrived: RFC 3339, UTC."""
        return timestamp(self.received)

    @property
    def deadline(self) -> date | None:
        """`due`, or for GDPR one month after receipt; None when no day is set."""
        if self.due is not None or self.kind != "gdpr":
            return self.due
        return _one_month_after(self.received.astimezone(UTC).date())


def _one_month_after(day: date) -> date:
    """The same day of the next month, or its last: Regulation 1182/71, Article 3(2)(c)."""
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def request_schema() -> dict[str, Any]:
    """The JSON schema of one request."""
    return Request.model_json_schema()


def read_request(path: Path) -> Request:
    """Read the one request of a YAML or JSON file.

    Raises:
        NotFound, InputError: as `read_requests`; also when the file holds several.
    """
    found = read_requests(path)
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} requests.", "Give a file with one.")
    return found[0]


def read_requests(path: Path) -> tuple[Request, ...]:
    """Read a YAML or JSON file of one request, or a list of them.

    Raises:
        NotFound: the file cannot be read.
        InputError: it is not YAML, a field is missing, unknown or wrong, or an id occurs twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(
            f"the request {path} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is {len(data)} bytes long.", f"At most {_MAX_BYTES} are read.")
    try:
        loaded = yaml.load(data, _Loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be parsed"
        raise InputError(f"{path}{where}: {what}.", "Write YAML or JSON.") from error
    items = loaded if isinstance(loaded, list) else [loaded]
    found: dict[str, Request] = {}
    for number, item in enumerate(items, 1):
        where = f"{path}, request {number}" if len(items) > 1 else str(path)
        try:
            request = Request.model_validate(item)
        except ValidationError as error:
            raise InputError(
                f"{where}: {_said(error)}.", "See configs/requests/ for examples."
            ) from error
        if request.id in found:
            raise InputError(f"{where}: the id {request.id!r} occurs twice.", "Give each its own.")
        found[request.id] = request
    if not found:
        raise InputError(f"{path} holds no request.", "See configs/requests/ for examples.")
    return tuple(found.values())


def once(requests: Iterable[Request]) -> list[Request]:
    """The requests without those that say an earlier one again, by id and sender.

    Raises:
        InputError: two of one id and sender ask for different things.
    """
    first: dict[tuple[str, str], Request] = {}
    for request in requests:
        key = (request.id, normalise(request.claimant.contact))
        known = first.setdefault(key, request)
        if known.asks() != request.asks():
            raise InputError(
                f"Two requests with the id {request.id!r} ask for different things.",
                "Give each an id of its own.",
            )
    return list(first.values())


def _said(error: ValidationError) -> str:
    """The first thing that is wrong, and with which field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a loss."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key is no word; is a template not filled in?", key.start_mark
            )
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} is given twice", key.start_mark
            )
        seen.add(key.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
