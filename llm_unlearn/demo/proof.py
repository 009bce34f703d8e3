"""The demo's proofs: each claim is checked here, from outside, and may fail."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.demo.result import Check
from llm_unlearn.documents import Document
from llm_unlearn.errors import AccessDenied, UnlearnError
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import survey
from llm_unlearn.takedown.verify import verify_receipt
from llm_unlearn.workspace import Workspace

_EVERY = 101  # one byte in so many of a receipt is changed, one at a time


@dataclass(frozen=True)
class Removed:
    """What was removed, read before it was: for the scan, in memory only."""

    documents: tuple[Document, ...]
    tokens: tuple[tuple[int, ...], ...]
    vectors: tuple[NDArray[np.float32], ...]
    keys: tuple[bytes, ...]

    @classmethod
    def read(cls, workspace: Workspace, handles: Sequence[bytes]) -> Removed:
        """Read documents, token ids, vectors and data keys of records that are about to go."""
        opened = workspace.opened
        found = [record for h in handles if (record := opened.vault.find(h)) is not None]
        return cls(
            tuple(opened.document(record) for record in found),
            tuple(e.ids for r in found if r.fate == "corpus" for e in opened.examples(r)),
            tuple(opened.vectors(record) for record in found),
            tuple(opened.keyring.key(record.slot) for record in found),
        )

    def __add__(self, other: Removed) -> Removed:
        return Removed(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.vectors + other.vectors,
            self.keys + other.keys,
        )


def prove(
    workspace: Workspace,
    never: Workspace,
    removed: Removed,
    receipts: Sequence[Path],
    shards: Sequence[int],
) -> list[Check]:
    """Check every claim on the finished workspace.

    Args:
        never: a workspace built from scratch, under the same recipe, without the removed documents,
            and trained for `shards`, the ones that were touched.
    """
    return [
        _same_checkpoints(workspace, never, shards),
        _same_store(workspace, never),
        _no_residue(workspace, removed),
        *(_receipt(workspace, path) for path in receipts),
        _refused_again(workspace, removed),
        _no_group_no_answer(workspace),
    ]


def _same_checkpoints(workspace: Workspace, never: Workspace, shards: Sequence[int]) -> Check:
    plain = [
        {
            name: side.opened.checkpoints.plaintext(listed)
            for name, listed in side.opened.checkpoints.listed().items()
            if listed.shard in shards
        }
        for side in (workspace, never)
    ]
    size = sum(len(blob) for blob in plain[1].values())
    return Check(
        "The touched shards equal, byte for byte, a build from scratch without the subject.",
        bool(plain[1]) and plain[0] == plain[1],
        f"{len(plain[1])} checkpoints (adapter, optimizer, step) of shards "
        f"{', '.join(map(str, sorted(shards)))}: {size:,} bytes compared as plaintext",
    )


def _same_store(workspace: Workspace, never: Workspace) -> Check:
    mine, theirs = workspace.opened, never.opened
    held = (
        mine.store.canonical_bytes() == theirs.store.canonical_bytes()
        and mine.router.canonical_bytes() == theirs.router.canonical_bytes()
    )
    return Check(
        "Store and router equal those of a workspace that never had the documents.",
        held,
        f"{len(theirs.store)} and {len(theirs.router)} chunks with their records and vectors, "
        "in canonical order",
    )


def _no_residue(workspace: Workspace, removed: Removed) -> Check:
    opened = workspace.opened
    needles = Needles.build(
        [document.content for document in removed.documents],
        tokens=removed.tokens,
        vectors=np.concatenate(removed.vectors),
        keys=removed.keys,
        background=(
            opened.document(r).content for r in opened.vault.records() if r.fate != "refused"
        ),
    )
    found = survey([opened.path, opened.keyring.directory], needles)
    where = f" Found in {found.findings[0].path.name}." if found.findings else ""
    return Check(
        "No file of the workspace or of its keys holds a text, a vector or a key of them.",
        not found.findings and not found.unsearched and found.files > 0,
        f"{found.files} files, {found.bytes:,} bytes searched for {needles.fragments:,} text "
        f"fragments, {sum(map(len, removed.vectors))} vectors, {len(removed.keys)} keys.{where}",
    )


def _receipt(workspace: Workspace, path: Path) -> Check:
    verified = verify_receipt(path, workspace.public_key)
    data = path.read_bytes()
    believed = 0
    places = range(0, len(data), _EVERY)
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, "changed.json")
        for at in places:
            changed.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            try:
                verify_receipt(changed, workspace.public_key)
            except UnlearnError:
                continue
            believed += 1
    return Check(
        f"Receipt {verified.receipt.number} verifies with the public key alone, and not with one "
        "byte changed.",
        not believed,
        f"{len(places)} of its {len(data)} bytes changed one at a time: all refused"
        if not believed
        else f"{believed} of {len(places)} changed receipts were believed",
    )


def _refused_again(workspace: Workspace, removed: Removed) -> Check:
    report = workspace.ingest(removed.documents, dry_run=True)
    refused = sum(placed.decision.rule == "tombstone" for placed in report.placed)
    return Check(
        "The removed documents are refused when somebody brings them again.",
        refused == len(removed.documents),
        f"{refused} of {len(removed.documents)} refused by their tombstones",
    )


def _no_group_no_answer(workspace: Workspace) -> Check:
    try:
        workspace.ask("What is in the staff handbook?", ())
    except AccessDenied:
        hits = workspace.opened.store.search("handbook", groups={"strangers"}, k=5)
        return Check(
            "Who belongs to no group gets no answer, who belongs to another sees nothing.",
            not hits,
            f"refused without a group; {len(hits)} passages for a stranger",
        )
    return Check("Who belongs to no group gets no answer.", False, "an answer was given")
