"""The schema of a receipt, version 2: what it says, field by field. Version 1 is still read.

Guarantees: a receipt names nobody, by construction of its fields: counts, times, digests of what
remains and salted commitments; the two fields of free text (`Copy.label`, `Scan.searched`) are the
operator's and written as given. All numbers are integers or decimal strings with six digits, so
that canonical JSON never depends on how floats are printed. Unknown fields are refused.

docs/receipt.md is generated from here: each class and each field says what it means.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

VERSION: Final = 2
READABLE: Final = (1, 2)
"""Versions that are verified; receipts are written in the last."""


def _is_date(value: str) -> str:
    date.fromisoformat(value)
    return value


def _is_time(value: str) -> str:
    datetime.fromisoformat(value)
    return value


Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
"""SHA-256 or HMAC-SHA256, 64 lower-case hex digits."""
Decimal: TypeAlias = Annotated[str, StringConstraints(pattern=r"\A-?(0|[1-9]\d{0,14})\.\d{6}\z")]
"""A number as text with six digits after the point."""
Time: TypeAlias = Annotated[
    str,
    StringConstraints(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\z"),
    AfterValidator(_is_time),
]
"""RFC 3339, UTC, whole seconds."""
Day: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"\A\d{4}-\d\d-\d\d\z"), AfterValidator(_is_date)
]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]
Line: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Measured: TypeAlias = Decimal | Literal["not measured"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RequestCommitments(_Part):
    """What was asked, committed to under the request's own salt.

    The claimant is given the salt with the acknowledgement and can open the commitments; to anyone
    else they say nothing, even about a name or a text that could be guessed.
    """

    kind: Literal["dmca", "gdpr", "internal"] = Field(description="the kind of request")
    id: Digest = Field(description="commitment to the request's id; opened by `verify --request`")
    selectors: Digest = Field(
        description="commitment to how the request named the text: the canonical JSON of its "
        "subject, ids, source and text"
    )


class Times(_Part):
    """When each thing happened, by the operator's clock."""

    received: Time = Field(description="the request arrived")
    acknowledged: Time = Field(
        description="the text could no longer be retrieved or answered from; the claimant was told"
    )
    finished: Time = Field(description="text and keys gone, adapters retrained")


class ByFate(_Part):
    """Documents counted by where they lay."""

    store: Count = Field(0, description="documents that retrieval could serve")
    corpus: Count = Field(0, description="documents that adapters were trained on")


class Review(_Part):
    """What people decided."""

    removed: Count = Field(0, description="flagged, found to be copies and removed")
    kept: Count = Field(0, description="flagged, found not to be copies, and served on")
    open: Count = Field(0, description="not decided yet")
    fenced: Count = Field(
        0, description="of the open ones, those that answer nothing until decided (version 2)"
    )
    declined: Count = Field(
        0,
        description="named by the request or found to be copies, but not accepted: served again, "
        "the claimant was told why (version 2)",
    )


class Closure(_Part):
    """Which documents were found to fall under the request, and how."""

    rule: Line = Field(description="how copies were looked for, in one sentence")
    thresholds: dict[str, Decimal] = Field(description="the settings of that rule")
    compared: Count = Field(description="documents that were compared with the request")
    requested: ByFate = Field(description="named by the request itself: id, subject or source")
    exact: ByFate = Field(description="the same letters and digits in the same order")
    near_duplicate: ByFate = Field(description="the same text with changes")
    quotation: ByFate = Field(description="documents that quote it, or that it quotes, at length")
    flagged: ByFate = Field(description="possible paraphrases, for people to decide")
    mentions: ByFate = Field(
        ByFate(),
        description="documents of others that hold the subject's name: shown to people, left as "
        "they were (version 2)",
    )
    review: Review = Field(description="what people decided")


class Checkpoint(_Part):
    """A training checkpoint that knew the text and was disposed of."""

    shard: Count = Field(description="which shard")
    slice: Count = Field(description="the checkpoint after this slice, counted from 0")
    commitment: Digest = Field(
        description="commitment to its plaintext's SHA-256 under the salt of `state_before`"
    )


class Shard(_Part):
    """A shard that was rolled back and retrained."""

    shard: Count = Field(description="which shard")
    resumed_from: Count = Field(
        description="slices kept: training went on from the checkpoint after so many slices; "
        "0 means from the base model"
    )
    retrained: Count = Field(description="slices trained again")


class Done(_Part):
    """What was done."""

    documents_deleted: ByFate = Field(description="documents whose key was destroyed, rows removed")
    documents_held: Count = Field(
        0, description="documents under a legal hold: fenced and unlearned, but not destroyed"
    )
    keys_destroyed: Count = Field(description="data keys overwritten in place")
    checkpoints: tuple[Checkpoint, ...] = Field((), description="checkpoints disposed of")
    disposal: Line = Field(description="how: what was overwritten, removed, and in what order")
    shards: tuple[Shard, ...] = Field((), description="shards rolled back and retrained")
    together: int = Field(
        1, ge=1, description="requests carried out at once, this one included (version 2)"
    )


class AdapterDigest(_Part):
    """One adapter that answers now."""

    shard: Count = Field(description="which shard")
    digest: Digest = Field(description="SHA-256 of its plaintext")


class State(_Part):
    """What is there after the takedown; anyone with the retained documents can derive it again."""

    store: Digest = Field(description="SHA-256 of the canonical bytes of the store")
    adapters: tuple[AdapterDigest, ...] = Field(description="the adapters, by shard")
    recipe: Digest = Field(description="digest of all that decides the bits besides the documents")
    base_model: Digest = Field(description="digest of the base model's files")
    embedder: Digest = Field(description="digest of the embedding model's files")
    environment: dict[str, str] = Field(description="versions of Python and packages")
    code_version: Line = Field(description="version of this package")


class Before(_Part):
    """What was there before, committed to under a salt that is not in the receipt.

    A plain digest of the old state would let anyone test guesses of the removed text.
    """

    store: Digest = Field(description="commitment to the store's digest")
    adapters: Digest = Field(description="commitment to the list of adapter digests, by shard")


class Scan(_Part):
    """A search of every file of the workspace for what was removed."""

    files: Count = Field(description="files read")
    bytes: Count = Field(description="bytes read")
    findings: Count = Field(description="places where something of the removed text was found")
    searched: tuple[Line, ...] = Field(min_length=1, description="what was searched for, and where")


class Probe(_Part):
    """One leakage measurement at four moments; a mean over the removed texts."""

    name: Line = Field(description="which measurement")
    before: Measured = Field(description="before the takedown")
    rolled_back: Measured = Field(description="at once, on the last clean checkpoint")
    after: Measured = Field(description="after retraining")
    never_had: Measured | Literal["not built"] = Field(
        description="a model built from scratch without the text, where one was built"
    )


class Copy(_Part):
    """A registered copy outside: a backup, an export, a recipient, a cache."""

    kind: Literal["backup", "export", "recipient", "cache"] = Field(description="what it is")
    label: Line = Field(description="the operator's name for it; must not name a person or text")
    status: Literal["done", "owed"] = Field(description="disposed of, or still owed")
    due: Day | None = Field(None, description="the day by which it is owed")


class LogPlace(_Part):
    """The log as it stood before this receipt: RFC 9162's root over the files of all receipts before."""

    size: Count = Field(description="how many receipts: one less than `number`")
    root: Digest = Field(description="root of their Merkle tree; a leaf is a receipt's whole file")


class Receipt(_Part):
    """The signed account of one takedown."""

    version: Literal[1, 2] = Field(description="version of this schema")
    number: int = Field(ge=1, lt=10**8, description="place in the chain, from 1 without gaps")
    previous: Digest = Field(
        description="SHA-256 of the file of the receipt before; 64 zeros in the first"
    )
    log: LogPlace | None = Field(
        None, description="the log before it (version 2; null in version 1)"
    )
    decision: Literal["accepted", "partly accepted"] = Field(
        "accepted", description="whether all of the request was accepted (version 2)"
    )
    outcome: Literal["removed", "held", "nothing found"] = Field(
        description="removed; held (a legal hold keeps ciphertext and key, but not use); or no "
        "document fell under the request"
    )
    request: RequestCommitments = Field(description="what was asked")
    times: Times = Field(description="when")
    closure: Closure = Field(description="what was found")
    done: Done = Field(description="what was done about it")
    state_after: State = Field(description="what is left")
    state_before: Before = Field(description="what was there, committed to")
    scan: Scan | Literal["not scanned"] = Field(description="whether anything was left behind")
    probes: tuple[Probe, ...] | Literal["not probed"] = Field(
        description="whether the model still leaks the text"
    )
    copies: tuple[Copy, ...] = Field((), description="copies outside, done or still owed")
    does_not_prove: tuple[Line, ...] = Field(
        min_length=1, description="what must not be read into this receipt"
    )

    @model_validator(mode="after")
    def _of_its_version(self) -> Self:
        if self.version == 1:
            later = self.model_fields_set & {"log", "decision"}
            later |= self.closure.model_fields_set & {"mentions"}
            later |= self.closure.review.model_fields_set & {"fenced", "declined"}
            later |= self.done.model_fields_set & {"together"}
            if later:
                raise ValueError(f"version 1 has no field {min(later)}")
        elif self.log is None or self.log.size != self.number - 1:
            raise ValueError("log must be that of the receipts before this one")
        return self
