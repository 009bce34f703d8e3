"""A receipt of one takedown: how it is built, committed, written and chained.

Guarantees: building and writing are pure functions of their arguments, so a takedown that resumes
writes the same bytes. Receipts form a chain and a Merkle log: each holds the SHA-256 of the one
before and the root over all before (`merkle`), and a file once written is never replaced. What is
asked and what is gone appears only as HMAC-SHA256
commitments under a salt that is not in the receipt. The schema is `schema`.

Does not guarantee: that the numbers are true. The signature says who vouches for them (`envelope`);
`does_not_prove` says what nobody should read into them.

This module is loaded by the verifier and imports nothing from training or retrieval.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.files import sync_directory, write_atomic
from llm_unlearn.takedown.envelope import canonical, sign
from llm_unlearn.takedown.merkle import EMPTY, Tree, leaf_hash
from llm_unlearn.takedown.schema import (
    VERSION,
    AdapterDigest,
    Before,
    ByFate,
    Checkpoint,
    Closure,
    Copy,
    Done,
    LogPlace,
    Probe,
    Receipt,
    RequestCommitments,
    Review,
    Scan,
    Shard,
    State,
    Times,
)

__all__ = [
    "LIMITS",
    "NO_LOG",
    "NO_PREVIOUS",
    "SALT_BYTES",
    "VERSION",
    "AdapterDigest",
    "Before",
    "ByFate",
    "Checkpoint",
    "Closure",
    "Copy",
    "Done",
    "Head",
    "LogPlace",
    "Probe",
    "Receipt",
    "RequestCommitments",
    "Review",
    "Scan",
    "Shard",
    "State",
    "Times",
    "build_receipt",
    "chain_head",
    "commit",
    "commit_checkpoint",
    "commit_request",
    "commit_state",
    "decimal",
    "log_tree",
    "receipt_digest",
    "timestamp",
    "write_receipt",
]

NO_PREVIOUS: Final = "0" * 64
"""`previous` of the first receipt of a chain."""
NO_LOG: Final = LogPlace(size=0, root=EMPTY.hex())
"""`log` of the first receipt."""
SALT_BYTES: Final = 32

_DIGITS: Final = 6
_NUMBERED: Final = re.compile(r"\d{8}\.json")

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
_WAITS: Final = (
    "That the adapters know what they could: {} slices of retained documents were not retrained; what "
    "serves never saw the text."
)


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
    waiting: int = 0,
    notes: Sequence[str] = (),
    log: LogPlace = NO_LOG,
) -> Receipt:
    """Put a receipt together; the outcome and what it does not prove follow from the rest.

    Args:
        number: `chain_head(...).number + 1`.
        previous: `chain_head(...).digest`.
        scan: None says "not scanned".
        probes: None says "not probed".
        waiting: slices of the touched shards that were not trained again.
        notes: what else it does not prove.
        log: the log before this receipt: `log_tree`.
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
        log=log,
        decision="partly accepted" if closure.review.declined else "accepted",
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
        does_not_prove=(
            *LIMITS,
            *_limits_of_this(done, closure, scan, probes, copies),
            *([_WAITS.format(waiting)] if waiting else []),
            *notes,
        ),
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
        fenced = closure.review.fenced
        limits.append(
            f"That no paraphrase is left: {closure.review.open} possible ones await a decision"
            + (f"; until then {fenced} of them answer nothing." if fenced else ".")
        )
    if closure.review.declined:
        limits.append(
            f"That all that was asked for is gone: {closure.review.declined} documents were not accepted "
            "and are served on."
        )
    named = closure.mentions.store + closure.mentions.corpus
    if named:
        limits.append(
            f"That the subject is named nowhere: {named} documents of others hold the name and stay."
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


def log_tree(directory: Path) -> Tree:
    """The Merkle log of the receipts in `directory`, by number; checks nothing."""
    if not directory.is_dir():
        return Tree()
    names = sorted(path.name for path in directory.iterdir() if _NUMBERED.fullmatch(path.name))
    return Tree([leaf_hash((directory / name).read_bytes()) for name in names])


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
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True)
        sync_directory(directory.parent)
    write_atomic(path, data)
    return path
