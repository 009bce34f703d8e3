"""Check a receipt with nothing but the receipt, the public key and, if given, the log.

Guarantees: what `verify_receipt` returns was signed by the given key and is unchanged; with a log,
that the receipt stands in one unbroken chain from number 1 (no gap, no fork) whose Merkle roots are
those that its receipts name, and with a saved head or a later receipt, that the log has neither lost
nor replaced anything up to it; with a proof in place of the log, the same (`proof`); with a request
reference, that the receipt answers that request. Each failure has its own message. Everything is
read and nothing is written.

Does not guarantee: that the operator's statements are true (`Receipt.does_not_prove`), nor, with no
saved head or later receipt, that the log's newest receipts were not cut off.

Imports the standard library, cryptography, rfc8785, pydantic and this package's errors, files and the
modules of receipt and log: an auditor needs no model and no index.
"""

from __future__ import annotations

import hmac
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from llm_unlearn.errors import InputError, NotFound, VerificationFailed
from llm_unlearn.takedown.envelope import MAX_BYTES, fingerprint, load_public, open_envelope
from llm_unlearn.takedown.merkle import Tree, leaf_hash
from llm_unlearn.takedown.proof import LogHead, check_proof, parse_head
from llm_unlearn.takedown.receipt import (
    NO_PREVIOUS,
    SALT_BYTES,
    Head,
    Receipt,
    commit,
    receipt_digest,
)
from llm_unlearn.takedown.schema import READABLE, VERSION

_REFERENCE: Final = re.compile(r"(.+)#([0-9a-f]{64})", re.DOTALL)
_HEAD: Final = re.compile(r"([1-9]\d{0,7}):([0-9a-f]{64})")


class Check(NamedTuple):
    """One thing that held."""

    check: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A receipt that held.

    Attributes:
        receipt: what it says.
        digest: SHA-256 of the file, hex; with the number it is a `head` to save.
        key: fingerprint of the public key, hex.
        lines: what was checked, for people, in order.
        log_head: the head of the log or proof that was given; what an auditor keeps.
    """

    receipt: Receipt
    digest: str
    key: str
    lines: tuple[Check, ...]
    log_head: LogHead | None = None

    @property
    def head(self) -> Head | LogHead:
        """What to save in order to notice, later, that the log lost this receipt, or any before it."""
        return self.log_head or Head(self.receipt.number, self.digest)


class _Read(NamedTuple):
    path: Path
    receipt: Receipt
    digest: str
    leaf: bytes


def request_reference(id: str, salt: bytes) -> str:
    """What the claimant is given to recognise their receipt: `ID#SALT`, the salt in hex.

    It opens the receipt's commitments, so it is for the claimant alone.
    """
    return f"{id}#{salt.hex()}"


def verify_receipt(
    path: Path,
    public_key_path: Path,
    *,
    log: Path | None = None,
    head: str | None = None,
    later: Path | None = None,
    request: str | None = None,
    proof: Path | None = None,
) -> Verified:
    """Check one receipt and, as far as given, its place in the log and the request it answers.

    Args:
        path: the receipt.
        public_key_path: PEM file of the key to trust.
        log: directory of receipts (all its `*.json`), which must hold the receipt.
        head: saved earlier (`Verified.head`), `SIZE/ROOT` of a log or `NUMBER:DIGEST` of a receipt; the
            log must still begin with it.
        later: a receipt issued after this one; the log must hold it. Without a log or proof it must be
            the very next one.
        request: the claimant's reference, `ID#SALT` (`request_reference`).
        proof: in place of the log, the issuer's proof that the receipt stands in it.

    Raises:
        VerificationFailed: something does not hold; the message says what.
        KeysMissing, Damaged: the public key file is missing or is none.
        NotFound: the receipt or the log is not there.
        InputError: `head` or `request` is not of that form, or `head` was given without log and proof.
    """
    key = load_public(public_key_path)
    found = _read(path, key)
    receipt = found.receipt
    lines = [
        Check("key", f"SHA-256 {fingerprint(key)}"),
        Check("signature", "Ed25519 holds over the whole file; no byte was changed"),
        Check("schema", f"version {receipt.version}, receipt {receipt.number}"),
        _clock(receipt),
    ]
    if request is not None:
        lines.append(_check_request(receipt, request))
    after = _read(later, key) if later is not None else None
    top: LogHead | None = None
    if log is not None:
        checked, top = _check_log(found, _read_log(log, key), log, head, after)
        lines += checked
    if proof is not None:
        checked, top = _check_proof(found, proof, key, head, after)
        lines += checked
    if log is None and proof is None:
        if head is not None:
            raise InputError("a saved head says nothing without the log.", "Give the log as well.")
        if after is not None:
            lines.append(_check_next(found, after))
    return Verified(receipt, found.digest, fingerprint(key), tuple(lines), top)


def _read(path: Path, key: bytes) -> _Read:
    """Read, authenticate and parse one receipt; failures name the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(
            f"the receipt {path} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    try:
        payload = open_envelope(data, key)
    except VerificationFailed as error:
        raise VerificationFailed(f"{path}: {error.problem}", error.remedy) from error
    if payload.get("version") not in READABLE:
        raise VerificationFailed(
            f"{path}: the receipt's schema is not version {VERSION} or an earlier one.",
            "Verify it with the version of this package that wrote it.",
        )
    try:
        receipt = Receipt.model_validate_json(json.dumps(payload))  # strict types are JSON's
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerificationFailed(
            f"{path}: signed, but not a receipt of its schema: {where}: {first['msg']}.",
            "Ask the issuer: their software wrote something else.",
        ) from error
    return _Read(path, receipt, receipt_digest(data), leaf_hash(data))


def _clock(receipt: Receipt) -> Check:
    """Times are the operator's own; that they run backwards is said, not refused."""
    times = receipt.times
    ordered = times.received <= times.acknowledged <= times.finished
    detail = "received, acknowledged, finished in this order"
    return Check("times", detail if ordered else "the operator's clock ran backwards in between")


def _check_request(receipt: Receipt, reference: str) -> Check:
    """The receipt's commitment to the request id opens with the claimant's reference."""
    form = _REFERENCE.fullmatch(reference)
    if form is None:
        raise InputError(
            "the request reference is not of the form ID#SALT.",
            f"Give it as the acknowledgement did: the id, '#', and {2 * SALT_BYTES} hex digits.",
        )
    id, salt = form.groups()
    expected = commit(bytes.fromhex(salt), "request id", id.encode())
    if not hmac.compare_digest(expected, receipt.request.id):
        raise VerificationFailed(
            f"receipt {receipt.number} answers another request than {id[:80]!a}.",
            "Ask the issuer for the receipt of this request.",
        )
    return Check("request", f"answers {id}")


def _read_log(log: Path, key: bytes) -> dict[int, _Read]:
    """Every receipt of a log by number; two different ones with one number are a fork."""
    if not log.is_dir():
        raise NotFound(f"the log {log} is not a directory.", "Give the directory of receipts.")
    found: dict[int, _Read] = {}
    for path in sorted(log.glob("*.json")):
        read = _read(path, key)
        other = found.setdefault(read.receipt.number, read)
        if other.digest != read.digest:
            raise VerificationFailed(
                f"the log is forked: {other.path.name} and {path.name} are different receipts "
                f"number {read.receipt.number}.",
                "The issuer told two stories; keep both files as evidence.",
            )
    return found


def _check_log(
    presented: _Read, found: dict[int, _Read], log: Path, head: str | None, later: _Read | None
) -> tuple[list[Check], LogHead]:
    """The chain from number 1 to its end, its roots, and that it holds what it must."""
    wanted: list[tuple[int, str | None, str]] = [
        (presented.receipt.number, presented.digest, f"the receipt {presented.path.name}")
    ]
    root: LogHead | None = None
    if head is not None:
        form = _HEAD.fullmatch(head)
        if form is None:
            root = parse_head(head)
            wanted.append((root.size, None, "the saved head"))
        else:
            wanted.append((int(form[1]), form[2], "the saved head"))
    if later is not None:
        if later.receipt.number <= presented.receipt.number:
            raise InputError(
                f"{later.path} is receipt {later.receipt.number}, not later than "
                f"{presented.receipt.number}.",
                "Give a later one.",
            )
        wanted.append((later.receipt.number, later.digest, f"the later receipt {later.path.name}"))

    last = max(found, default=0)
    for number, digest, what in wanted:
        if number > last:
            raise VerificationFailed(
                f"the log {log} was truncated: it ends at receipt {last}, and {what} has number "
                f"{number}.",
                "Ask the issuer for the whole log.",
            )
        if digest is not None and number in found and found[number].digest != digest:
            raise VerificationFailed(
                f"the log {log} is forked: its receipt {number} is not {what}.",
                "The issuer told two stories; keep both files as evidence.",
            )
    previous, tree = NO_PREVIOUS, Tree()
    for number in range(1, last + 1):
        if number not in found:
            raise VerificationFailed(
                f"the log {log} has a gap: receipt {number} of {last} is missing.",
                "Ask the issuer for the whole log.",
            )
        _check_link(found[number], previous)
        _check_root(found[number], tree)
        previous = found[number].digest
        tree.append(found[number].leaf)
        if root is not None and number == root.size and tree.root().hex() != root.root:
            raise VerificationFailed(
                f"the log {log} is forked: its first {number} receipts do not make the saved head.",
                "The issuer told two stories; keep both as evidence.",
            )
    lines = [Check("log", f"{last} receipts in one chain, without gap or fork")]
    lines += [Check("log", f"holds {what} as number {number}") for number, _, what in wanted]
    return lines, LogHead(last, tree.root().hex())


def _check_root(read: _Read, before: Tree) -> None:
    """A receipt names the root of the log before it (schema 2)."""
    said = read.receipt.log
    if said is not None and said.root != before.root().hex():
        raise VerificationFailed(
            f"receipt {read.receipt.number} names another log before it than the one given.",
            "A receipt before it was replaced after the fact, or the issuer told two stories.",
        )


def _check_proof(
    presented: _Read, path: Path, key: bytes, head: str | None, later: _Read | None
) -> tuple[list[Check], LogHead]:
    """The receipt's place in the log, and that the log begins with what was seen of it before."""
    heads: list[tuple[LogHead, str]] = []
    if head is not None:
        if _HEAD.fullmatch(head):
            raise InputError("a head of one receipt says nothing of a proof.", "Give the log.")
        heads.append((parse_head(head), "the saved head"))
    if later is not None:
        if later.receipt.log is None:
            raise InputError(f"{later.path} names no log (schema 1).", "Give the log itself.")
        place = later.receipt.log
        heads.append((LogHead(place.size, place.root), f"the log before {later.path.name}"))
    number = presented.receipt.number
    top = check_proof(path, key, number=number, leaf=presented.leaf, heads=heads)
    lines = [Check("proof", f"stands in the log of {top.size} receipts as number {number}")]
    lines += [Check("proof", f"the log begins with {what}") for _, what in heads]
    return lines, top


def _check_link(read: _Read, previous: str) -> None:
    if read.receipt.previous != previous:
        before = read.receipt.number - 1
        raise VerificationFailed(
            f"the chain is broken at receipt {read.receipt.number}: "
            + (
                f"it does not follow the receipt {before} given."
                if before
                else "the first one names a receipt before it."
            ),
            f"Receipt {before or 1} was replaced after the fact, or is from another log.",
        )


def _check_next(presented: _Read, later: _Read) -> Check:
    """Without a log, a later receipt only helps when it is the very next one."""
    if later.receipt.number != presented.receipt.number + 1:
        raise InputError(
            f"{later.path} is receipt {later.receipt.number}, not the one after "
            f"{presented.receipt.number}.",
            "Give the next one, or the log.",
        )
    _check_link(later, presented.digest)
    return Check("chain", f"receipt {later.receipt.number} follows it")
