"""A receipt's place in the log, proved to someone who has not got the log.

A proof is a signed statement of the operator: the log has this size and root, this receipt stands in it
(inclusion), and it begins with the log whose head was saved earlier (consistency). Size and root are the
log's *head*, written `SIZE/ROOT`; an auditor keeps the newest head that held.

Guarantees: `check_proof` passes only when the signature holds, the receipt is in the log of that head,
and every head given is that of an earlier state of the same log. Each failure has its own message.

Does not guarantee: that everybody is shown the same log; auditors who compare heads find out.

This module is loaded by the verifier and imports nothing from training or retrieval.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_unlearn.errors import InputError, NotFound, VerificationFailed
from llm_unlearn.files import write_atomic
from llm_unlearn.takedown import merkle
from llm_unlearn.takedown.envelope import MAX_BYTES, canonical, open_envelope, sign
from llm_unlearn.takedown.receipt import log_tree
from llm_unlearn.takedown.schema import Count, Digest

PROOF_TYPE: Final = "application/vnd.llm-unlearn.proof+json"
_HEAD: Final = re.compile(r"([1-9]\d{0,7})/([0-9a-f]{64})")
_TWO_STORIES: Final = "The issuer told two stories; keep both as evidence."


class LogHead(NamedTuple):
    """A log as it stood: how many receipts, and the root over them."""

    size: int
    root: str  # hex

    def __str__(self) -> str:
        return f"{self.size}/{self.root}"


class Proof(BaseModel):
    """What a proof says; hashes are 64 hex digits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    number: Annotated[int, Field(ge=1)]  # of the receipt
    size: Annotated[int, Field(ge=1)]
    root: Digest
    inclusion: tuple[Digest, ...]
    from_size: Count  # the head that it is consistent with; 0: none was asked for
    consistency: tuple[Digest, ...]


def parse_head(text: str) -> LogHead:
    """A head as `verify` printed it.

    Raises:
        InputError: it is not of the form SIZE/ROOT.
    """
    form = _HEAD.fullmatch(text)
    if form is None:
        raise InputError(
            f"the saved head {text[:80]!a} is not of the form SIZE/ROOT.",
            "Give it as `verify` printed it.",
        )
    return LogHead(int(form[1]), form[2])


def write_proof(
    log: Path, number: int, out: Path, seed: bytes, *, since: LogHead | None = None
) -> LogHead:
    """Write the proof of receipt `number` in the log as it stands; returns the log's head.

    Args:
        since: a head that somebody saved; the proof shows that the log still begins with it.
        seed: 32-byte Ed25519 seed.

    Raises:
        NotFound: the log has no such receipt, or is shorter than the head.
        InputError: the file is there already.
    """
    leaves = log_tree(log).leaves
    longest = max(number, since.size if since else 0)
    if not 1 <= number <= len(leaves) or longest > len(leaves):
        raise NotFound(
            f"The log ends at receipt {len(leaves)}; {longest} is not in it.", "Check the number."
        )
    if out.exists():
        raise InputError(f"{out} is there already.", "Choose a new name.")
    head = LogHead(len(leaves), merkle.root(leaves).hex())
    steps = merkle.consistency_proof(leaves, since.size) if since else []
    proof = Proof(
        number=number,
        size=head.size,
        root=head.root,
        inclusion=tuple(s.hex() for s in merkle.inclusion_proof(leaves, number - 1)),
        from_size=since.size if since else 0,
        consistency=tuple(s.hex() for s in steps),
    )
    write_atomic(out, canonical(sign(proof.model_dump(mode="json"), seed, PROOF_TYPE)), mode=0o644)
    return head


def check_proof(
    path: Path,
    key: bytes,
    *,
    number: int,
    leaf: bytes,
    heads: Sequence[tuple[LogHead, str]] = (),
) -> LogHead:
    """Check the proof in a file; returns the head that it vouches for.

    Args:
        number: the receipt's.
        leaf: its leaf hash.
        heads: heads that the log must begin with, each with what it is called.

    Raises:
        VerificationFailed: something does not hold; the message says what.
        InputError: the proof does not speak of one of the heads.
        NotFound: there is no such file.
    """
    proof = _read(path, key)
    head = LogHead(proof.size, proof.root)
    if proof.number != number:
        raise VerificationFailed(
            f"{path} proves receipt {proof.number}, not {number}.",
            "Ask the issuer for the proof of this receipt.",
        )
    steps = [bytes.fromhex(step) for step in proof.inclusion]
    if not merkle.included(leaf, number - 1, head.size, steps, bytes.fromhex(head.root)):
        raise VerificationFailed(
            f"{path}: receipt {number} is not in the log of this proof.", _TWO_STORIES
        )
    for old, what in heads:
        _check_head(path, proof, head, old, what)
    return head


def _check_head(path: Path, proof: Proof, head: LogHead, old: LogHead, what: str) -> None:
    if old.size > head.size:
        raise VerificationFailed(
            f"{path}: the log was truncated: it ends at receipt {head.size}, and {what} has "
            f"{old.size}.",
            "Ask the issuer for the whole log.",
        )
    if old.size == 0:
        return
    steps = [bytes.fromhex(step) for step in proof.consistency]
    if old.size == head.size:
        steps = []
    elif proof.from_size != old.size:
        raise InputError(
            f"{path} does not say whether the log begins with {what}.",
            f"Ask the issuer for a proof since {old.size}/{old.root}.",
        )
    before, after = bytes.fromhex(old.root), bytes.fromhex(head.root)
    if not merkle.consistent(old.size, before, head.size, after, steps):
        raise VerificationFailed(
            f"{path}: the log is forked: it does not begin with {what}.", _TWO_STORIES
        )


def _read(path: Path, key: bytes) -> Proof:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(
            f"the proof {path} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    try:
        return Proof.model_validate(open_envelope(data, key, PROOF_TYPE))
    except VerificationFailed as error:
        raise VerificationFailed(f"{path}: {error.problem}", error.remedy) from error
    except ValidationError as error:
        raise VerificationFailed(
            f"{path}: signed, but not a proof that this version reads.",
            "Verify it with the version of this package that wrote it.",
        ) from error
