"""Receipts for the tests: built with the real functions, signed with a fixed key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_unlearn.takedown.envelope import public_pem
from llm_unlearn.takedown.receipt import (
    AdapterDigest,
    ByFate,
    Closure,
    Copy,
    Done,
    LogPlace,
    Probe,
    Receipt,
    Review,
    Scan,
    Shard,
    State,
    Times,
    build_receipt,
    chain_head,
    commit_checkpoint,
    commit_request,
    commit_state,
    decimal,
    log_tree,
    write_receipt,
)

SEED = bytes(range(32))
SALT = bytes(range(100, 132))
SECRETS = ("erasure-2031-0112", "perpetua-lindqvist", "The salt cartographer drew the tide.")


@pytest.fixture
def seed() -> bytes:
    return SEED


@pytest.fixture
def salt() -> bytes:
    return SALT


@pytest.fixture
def secrets() -> tuple[str, ...]:
    """What the receipts of `receipt` must not contain: request id, subject, text."""
    return SECRETS


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem(SEED))
    return path


@pytest.fixture
def receipt() -> Callable[..., Receipt]:
    """Build a receipt; keyword arguments replace those of `build_receipt`."""

    def build(**changes: Any) -> Receipt:
        arguments: dict[str, Any] = {
            "number": 1,
            "previous": "0" * 64,
            "request": commit_request(
                SALT,
                kind="gdpr",
                id=SECRETS[0],
                selectors={"subject": SECRETS[1], "ids": [], "source": None, "text": SECRETS[2]},
            ),
            "times": Times(
                received="2031-01-31T15:40:00Z",
                acknowledged="2031-01-31T15:40:01Z",
                finished="2031-01-31T15:52:10Z",
            ),
            "closure": Closure(
                rule="letters compared",
                thresholds={"noisy": decimal(0.7)},
                compared=140,
                requested=ByFate(store=2, corpus=3),
                exact=ByFate(),
                near_duplicate=ByFate(corpus=1),
                quotation=ByFate(store=1),
                flagged=ByFate(store=1),
                review=Review(kept=1),
            ),
            "done": Done(
                documents_deleted=ByFate(store=3, corpus=4),
                keys_destroyed=9,
                checkpoints=(commit_checkpoint(SALT, shard=2, slice=1, digest="ab" * 32),),
                disposal="keys zeroed, rows removed",
                shards=(Shard(shard=2, resumed_from=1, retrained=2),),
            ),
            "state_after": State(
                store="1" * 64,
                adapters=(AdapterDigest(shard=0, digest="2" * 64),),
                recipe="3" * 64,
                base_model="4" * 64,
                embedder="5" * 64,
                environment={"torch": "2.13.0"},
                code_version="0.1.0",
            ),
            "state_before": commit_state(SALT, store="6" * 64, adapters={0: "7" * 64}),
            "scan": Scan(files=12, bytes=3456, findings=0, searched=("the text, in clear",)),
            "probes": [
                Probe(
                    name="verbatim probability",
                    before=decimal(0.91),
                    rolled_back=decimal(0.01),
                    after=decimal(0.01),
                    never_had="not built",
                )
            ],
            "copies": [Copy(kind="backup", label="nightly", status="owed", due="2031-02-28")],
        }
        given = arguments | changes
        given.setdefault("log", LogPlace(size=given["number"] - 1, root="8" * 64))
        return build_receipt(**given)

    return build


@pytest.fixture
def log(tmp_path: Path, receipt: Callable[..., Receipt]) -> Callable[..., Path]:
    """Write a chain of receipts into a directory; `mark` makes the chains of two logs differ."""

    def write(name: str, count: int, *, mark: str = "nightly") -> Path:
        directory = tmp_path / name
        for _ in range(count):
            head, tree = chain_head(directory), log_tree(directory)
            made = receipt(
                number=head.number + 1,
                previous=head.digest,
                log=LogPlace(size=len(tree.leaves), root=tree.root().hex()),
                copies=[Copy(kind="backup", label=mark, status="done")],
            )
            write_receipt(directory, made, SEED)
        return directory

    return write
