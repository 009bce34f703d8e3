"""The unit of everything: a document, and the text that the rest of the package sees of it.

Guarantees: a `Document` that exists is well formed (an id, a text or messages, no control
characters in the text and none at all in the names); `content` is the one rendering that is
searched, compared and hashed. It does not say where the document goes (`separation`) nor how it is
read from files (`readers`).
"""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HALF = re.compile(r"[\ud800-\udfff]")  # half a character, which no encoding can write
_SPACE = re.compile(r"\s+")
# Names are shown in terminals and lists, so a line break or an escape sequence has no place in one.
_NO_CONTROL = r"^\P{Cc}*$"

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=512, pattern=_NO_CONTROL),
]
Label = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=128, pattern=_NO_CONTROL),
]
_METADATA_BYTES = 65_536


def _written_date(value: object) -> object:
    if value is None or isinstance(value, str | datetime.date):
        return value
    raise ValueError("write a date as YYYY-MM-DD")


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Document(BaseModel):
    """One text with what is known of it.

    Exactly one of `text` and `messages` is given. `subject` is the unit that deletes together; a
    document without one is its own subject. `metadata` is any JSON of at most 64 KiB: it is kept
    sealed with the text, can be filtered by, and decides nothing.

    Raises:
        pydantic.ValidationError: a field is missing, unknown, empty or of the wrong type.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    text: str | None = None
    messages: tuple[Message, ...] = ()
    subject: Name = ""
    source: str = Field(default="", max_length=4096, pattern=_NO_CONTROL)
    license: str = Field(default="", max_length=128, pattern=_NO_CONTROL)
    tags: tuple[Label, ...] = ()
    acl: tuple[Label, ...] = ()
    date: Annotated[datetime.date | None, BeforeValidator(_written_date)] = None
    metadata: dict[Label, JsonValue] = Field(default={})

    @field_validator("metadata")
    @classmethod
    def _small_and_clean(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            written = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the metadata is not valid UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(
                "the metadata nests too deep or holds a number that is not finite"
            ) from error
        if len(written) > _METADATA_BYTES:
            raise ValueError(
                f"the metadata takes {len(written)} bytes, more than {_METADATA_BYTES}; "
                "put long texts into documents of their own"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _own_subject(cls, values: object) -> object:
        if isinstance(values, dict) and not values.get("subject") and values.get("id"):
            return {**values, "subject": values["id"]}
        return values

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        if (self.text is None) == (not self.messages):
            raise ValueError("give exactly one of text and messages")
        for part in (self.text,) if self.text is not None else [m.content for m in self.messages]:
            if part is None or not part.strip():
                raise ValueError("the text is empty")
            if _HALF.search(part):
                raise ValueError("the text is not valid UTF-8")
            found = _CONTROL.search(part)
            if found:
                raise ValueError(
                    f"the text holds the control character U+{ord(found.group()):04X}; "
                    "is this a binary file?"
                )
        if self.messages and self.messages[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's")
        if self.messages and all(message.role != "user" for message in self.messages):
            raise ValueError("a conversation needs a message of the user before the assistant's")
        return self

    @property
    def content(self) -> str:
        """The text, or the turns as `Role: words`, one a line."""
        if self.text is not None:
            return self.text
        return "\n".join(f"{m.role.capitalize()}: {m.content}" for m in self.messages)


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case folded, white space as one blank.

    >>> normalise("  The\\tFULL\\nmoon ")
    'the full moon'
    """
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
