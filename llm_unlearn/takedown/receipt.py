"""The receipt of one takedown: its schema, how it is built, written and chained.

Guarantees: a receipt names nobody. It holds counts, times, digests of what remains and salted
commitments (HMAC-SHA256) to what was asked and to what is gone; no id, subject, source or text. All
numbers are integers or decimal strings with six digits, so that its canonical JSON never depends
on how floats are printed. Building and writing are pure functions of their arguments: a takedown
that resumes writes the same bytes. Receipts form a chain: each holds the SHA-256 of the one before,
and a file once written is never replaced.

Does not guarantee: that the numbers are true. The signature says who vouches for them (`envelope`);
`does_not_prove` says what nobody should read into them. Free text that the operator supplies
(`Copy.label`, `Scan.searched`) is written as given.

This module is loaded by the verifier and imports nothing from training or retrieval.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.files import write_atomic
from llm_unlearn.takedown.envelope import canonical, sign

VERSION: Final = 1
NO_PREVIOUS: Final = "0" * 64
"""`previous` of the first receipt of a chain."""
SALT_BYTES: Final = 32

_DIGITS: Final = 6
_NUMBERED: Final = re.compile(r"\d{8}\.json")


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
    """What people decided about the flagged documents."""

    removed: Count = Field(0, description="found to be copies and removed")
    kept: Count = Field(0, description="found not to be copies and served again")
    open: Count = Field(0, description="not decided yet; fenced meanwhile")


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
    review: Review = Field(description="their decisions")


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


class Receipt(_Part):
    """The signed account of one takedown."""

    version: Literal[1] = Field(description="version of this schema")
    number: int = Field(ge=1, lt=10**8, description="place in the chain, from 1 without gaps")
    previous: Digest = Field(
        description="SHA-256 of the file of the receipt before; 64 zeros in the first"
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


LIMITS: Final[tuple[str, ...]] = (
    "That the base model never saw the text: its makers trained it before, on data of their own.",
    "That no copy exists elsewhere: copies that were never registered here are not covered.",
    "That the operator's records are honest and complete: the receipt is the operator's word, "
    "signed; only what can be derived again can be checked.",
    "That no bytes remain in freed blocks of the disk, in memory that was swapped out, or in "
    "snapshots below the file system; what lies there is ciphertext whose key is destroyed, "
    "unless something other than this software wrote it.",
    "That nobody remembers, noted down or copied an answer given before the takedown.",
)
"""What no receipt proves, whatever else it says."""


def commit(salt: bytes, what: str, value: bytes) -> str:
    """A salted commitment: HMAC-SHA256 of `what || 0x00 || value` under `salt`, in hex.

    Binding because SHA-256 resists collisions; hiding as long as the 32-byte salt is unknown.

    Raises:
        InputError: the salt is not 32 bytes, which would let a guess be tested.
    """
    if len(salt) != SALT_BYTES:
        raise InputError(f"the salt is {len(salt)} bytes long.", f"Give {SALT_BYTES} random bytes.")
    return hmac.new(salt, what.encode() + b"\x00" + value, hashlib.sha256).hexdigest()


def commit_request(
    salt: bytes,
    *,
    kind: Literal["dmca", "gdpr", "internal"],
    id: str,
    selectors: Mapping[str, Any],
) -> RequestCommitments:
    """Commit to a request. `selectors` is JSON: see `Request.selectors`."""
    return RequestCommitments(
        kind=kind,
        id=commit(salt, "request id", id.encode()),
        selectors=commit(salt, "request selectors", canonical(selectors)),
    )


def commit_state(salt: bytes, *, store: str, adapters: Mapping[int, str]) -> Before:
    """Commit to a state: the store's digest and each shard's adapter digest."""
    by_shard = {str(shard): adapters[shard] for shard in sorted(adapters)}
    return Before(
        store=commit(salt, "store", store.encode()),
        adapters=commit(salt, "adapters", canonical(by_shard)),
    )


def commit_checkpoint(salt: bytes, *, shard: int, slice: int, digest: str) -> Checkpoint:
    """Commit to the plaintext digest of a checkpoint that was disposed of."""
    value = f"{shard}/{slice}/{digest}".encode()
    return Checkpoint(shard=shard, slice=slice, commitment=commit(salt, "checkpoint", value))


def decimal(value: float | None) -> str:
    """A number as the receipt writes it; "not measured" when there is none or it is not finite.

    >>> decimal(0.5), decimal(-0.0000001), decimal(None)
    ('0.500000', '0.000000', 'not measured')
    """
    if value is None or not math.isfinite(value):
        return "not measured"
    text = f"{value:.{_DIGITS}f}"
    return text[1:] if float(text) == 0 and text.startswith("-") else text


def timestamp(moment: datetime) -> str:
    """A moment as the receipt writes it: UTC, whole seconds, rounded down.

    Raises:
        InputError: `moment` has no time zone.
    """
    if moment.tzinfo is None:
        raise InputError(f"the time {moment.isoformat()} has no zone.", "Give it in UTC.")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def build_receipt(
    *,
    number: int,
    previous: str,
    request: RequestCommitments,
    times: Times,
    closure: Closure,
    done: Done,
    state_after: State,
    state_before: Before,
    scan: Scan | None,
    probes: Sequence[Probe] | None,
    copies: Sequence[Copy] = (),
) -> Receipt:
    """Put a receipt together; the outcome and what it does not prove follow from the rest.

    Args:
        number: `chain_head(...).number + 1`.
        previous: `chain_head(...).digest`.
        scan: None says "not scanned".
        probes: None says "not probed".
    """
    deleted = done.documents_deleted.store + done.documents_deleted.corpus
    outcome: Literal["removed", "held", "nothing found"] = "removed"
    if done.documents_held:
        outcome = "held"
    elif not deleted:
        outcome = "nothing found"
    return Receipt(
        version=VERSION,
        number=number,
        previous=previous,
        outcome=outcome,
        request=request,
        times=times,
        closure=closure,
        done=done,
        state_after=state_after,
        state_before=state_before,
        scan=scan if scan is not None else "not scanned",
        probes=tuple(probes) if probes is not None else "not probed",
        copies=tuple(copies),
        does_not_prove=(*LIMITS, *_limits_of_this(done, closure, scan, probes, copies)),
    )


def _limits_of_this(
    done: Done,
    closure: Closure,
    scan: Scan | None,
    probes: Sequence[Probe] | None,
    copies: Sequence[Copy],
) -> list[str]:
    """What this receipt in particular leaves unproved."""
    limits = []
    owed = sum(copy.status == "owed" for copy in copies)
    if scan is None:
        limits.append("That no trace is left in the workspace: its files were not scanned.")
    elif scan.findings:
        limits.append("That no trace is left in the workspace: the scan found some.")
    if probes is None:
        limits.append("That the model no longer leaks the text: it was not probed.")
    elif any(probe.never_had == "not built" for probe in probes):
        limits.append(
            "That the probes equal those of a model which never had the text: none was built "
            "independently."
        )
    if owed:
        limits.append(f"That all registered copies are gone: {owed} still owed.")
    if closure.review.open:
        limits.append(
            f"That no paraphrase is left: {closure.review.open} possible ones await a decision."
        )
    if done.documents_held:
        limits.append(
            "That the text cannot be read again: a legal hold keeps ciphertext and key; nothing "
            "serves it meanwhile."
        )
    return limits


class Head(NamedTuple):
    """The last receipt of a chain: what a claimant or auditor keeps to notice truncation."""

    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"


def receipt_digest(data: bytes) -> str:
    """What the next receipt calls `previous`: SHA-256 of the whole file."""
    return hashlib.sha256(data).hexdigest()


def chain_head(directory: Path) -> Head:
    """Number and digest of the last receipt in `directory`; (0, 64 zeros) when there is none.

    Reads one file and checks no signature: `verify` does.
    """
    if not directory.is_dir():
        return Head(0, NO_PREVIOUS)
    names = [path.name for path in directory.iterdir() if _NUMBERED.fullmatch(path.name)]
    if not names:
        return Head(0, NO_PREVIOUS)
    last = max(names)
    return Head(int(last[:8]), receipt_digest((directory / last).read_bytes()))


def write_receipt(directory: Path, receipt: Receipt, seed: bytes) -> Path:
    """Sign `receipt` and write it as `directory/NNNNNNNN.json`; return that path.

    Doing it again with the same receipt changes nothing. The caller holds the workspace's lock.

    Args:
        directory: made if it is not there.
        seed: 32-byte Ed25519 seed.

    Raises:
        Damaged: another receipt has that number, or the receipt does not follow the chain's head.
        EnvironmentFailure: the disk is full.
    """
    data = canonical(sign(receipt.model_dump(mode="json"), seed))
    path = directory / f"{receipt.number:08d}.json"
    if path.exists():
        if path.read_bytes() == data:
            return path
        raise Damaged(
            f"receipt {receipt.number} is already written, with other contents: {path}.",
            "Keep the file and check the chain with `llm-unlearn verify --log`.",
        )
    head = chain_head(directory)
    if (receipt.number, receipt.previous) != (head.number + 1, head.digest):
        raise Damaged(
            f"receipt {receipt.number} does not follow the last one in {directory}, "
            f"which is {head.number}.",
            "Restore the missing receipts, then resume the takedown.",
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, data)
    return path
