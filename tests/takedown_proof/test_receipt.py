"""Receipts: what they say, what they never say, how they are chained."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.takedown.envelope import open_envelope, public_key
from llm_unlearn.takedown.receipt import (
    LIMITS,
    ByFate,
    Done,
    Receipt,
    Review,
    Scan,
    chain_head,
    commit,
    commit_request,
    commit_state,
    decimal,
    timestamp,
    write_receipt,
)

Build = Callable[..., Receipt]


def test_a_receipt_names_nobody(
    receipt: Build, tmp_path: Path, seed: bytes, secrets: tuple[str, ...]
) -> None:
    path = write_receipt(tmp_path / "log", receipt(), seed)
    said = json.dumps(open_envelope(path.read_bytes(), public_key(seed)))
    for secret in secrets:
        assert secret not in said
        plain = hashlib.sha256(secret.encode()).hexdigest()
        assert plain not in said


def test_a_receipt_holds_no_floats(receipt: Build) -> None:
    def floats(value: object) -> bool:
        if isinstance(value, dict):
            return any(map(floats, value.values()))
        if isinstance(value, list):
            return any(map(floats, value))
        return isinstance(value, float)

    assert not floats(receipt().model_dump(mode="json"))


def test_commitments_by_hand() -> None:
    """HMAC-SHA256(salt, "request id" 00 "R-1"), and the selectors as canonical JSON."""
    salt = b"s" * 32
    made = commit_request(salt, kind="dmca", id="R-1", selectors={"text": None, "ids": ["b"]})
    assert made.id == hmac.digest(salt, b"request id\0R-1", "sha256").hex()
    selectors = b'request selectors\0{"ids":["b"],"text":null}'
    assert made.selectors == hmac.digest(salt, selectors, "sha256").hex()
    before = commit_state(salt, store="aa", adapters={10: "x", 2: "y"})
    assert before.adapters == hmac.digest(salt, b'adapters\0{"10":"x","2":"y"}', "sha256").hex()


def test_a_short_salt_is_refused() -> None:
    with pytest.raises(InputError, match="4 bytes long"):
        commit(b"salt", "request id", b"R-1")


def test_numbers_as_text() -> None:
    assert decimal(1 / 3) == "0.333333"
    assert decimal(-2.5) == "-2.500000"
    assert decimal(-1e-9) == "0.000000"
    assert decimal(math.nan) == decimal(math.inf) == decimal(None) == "not measured"


@given(st.floats(-1e12, 1e12))
def test_any_number_fits_the_schema(value: float) -> None:
    text = decimal(value)
    assert re.fullmatch(r"-?(0|[1-9]\d{0,14})\.\d{6}", text)
    assert text != "-0.000000"
    assert float(text) == pytest.approx(value, abs=1e-6, rel=1e-12)


def test_times_are_utc() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    assert timestamp(datetime(2031, 1, 1, 2, 0, 0, 999999, east)) == "2030-12-31T20:30:00Z"
    assert timestamp(datetime(2031, 1, 1, tzinfo=UTC)) == "2031-01-01T00:00:00Z"
    with pytest.raises(InputError, match="no zone"):
        timestamp(datetime(2031, 1, 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 3),
        ("version", 1),
        ("log", None),
        ("log", {"size": 1, "root": "0" * 64}),
        ("number", 0),
        ("number", "1"),
        ("previous", "0" * 63),
        ("previous", "A" * 64),
        ("outcome", "done"),
        ("probes", "none"),
        ("does_not_prove", []),
        ("surprise", 1),
    ],
)
def test_the_schema_refuses(receipt: Build, field: str, value: object) -> None:
    said = receipt().model_dump(mode="json") | {field: value}
    with pytest.raises(ValidationError):
        Receipt.model_validate_json(json.dumps(said))


def test_the_schema_refuses_impossible_times(receipt: Build) -> None:
    said = receipt().model_dump(mode="json")
    said["times"]["finished"] = "2031-02-30T00:00:00Z"
    with pytest.raises(ValidationError):
        Receipt.model_validate_json(json.dumps(said))


def test_the_schema_takes_its_own_output(receipt: Build) -> None:
    made = receipt()
    assert Receipt.model_validate_json(made.model_dump_json()) == made


def test_what_is_not_proved_follows_from_the_rest(receipt: Build) -> None:
    good = receipt()
    assert good.does_not_prove[: len(LIMITS)] == LIMITS
    assert any("1 still owed" in line for line in good.does_not_prove)
    assert any("never had" in line for line in good.does_not_prove)
    bare = receipt(scan=None, probes=None, copies=())
    assert (bare.scan, bare.probes) == ("not scanned", "not probed")
    assert any("not scanned" in line for line in bare.does_not_prove)
    assert any("not probed" in line for line in bare.does_not_prove)
    assert not any("owed" in line for line in bare.does_not_prove)
    found = receipt(scan=Scan(files=1, bytes=1, findings=2, searched=("text",)))
    assert any("scan found some" in line for line in found.does_not_prove)
    waiting = good.closure.model_copy(update={"review": Review(open=3)})
    assert any("3 possible ones" in line for line in receipt(closure=waiting).does_not_prove)


def test_the_outcome_follows_from_what_was_done(receipt: Build) -> None:
    def outcome(**changes: object) -> str:
        done = Done(documents_deleted=ByFate(), keys_destroyed=0, disposal="none")
        return receipt(done=done.model_copy(update=changes)).outcome

    assert outcome() == "nothing found"
    assert outcome(documents_deleted=ByFate(corpus=1)) == "removed"
    assert outcome(documents_deleted=ByFate(corpus=1), documents_held=1) == "held"


def test_a_chain_by_hand(receipt: Build, tmp_path: Path, seed: bytes) -> None:
    directory = tmp_path / "log"
    assert chain_head(directory) == (0, "0" * 64)
    first = write_receipt(directory, receipt(), seed)
    assert first.name == "00000001.json"
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert chain_head(directory) == (1, digest)
    assert str(chain_head(directory)) == f"1:{digest}"
    second = write_receipt(directory, receipt(number=2, previous=digest), seed)
    assert chain_head(directory).number == 2
    assert second.stat().st_mode & 0o777 == 0o600


def test_writing_again_changes_nothing(receipt: Build, tmp_path: Path, seed: bytes) -> None:
    directory = tmp_path / "log"
    path = write_receipt(directory, receipt(), seed)
    before = path.stat()
    assert write_receipt(directory, receipt(), seed) == path
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_receipt_is_never_replaced(receipt: Build, tmp_path: Path, seed: bytes) -> None:
    directory = tmp_path / "log"
    path = write_receipt(directory, receipt(), seed)
    before = path.read_bytes()
    with pytest.raises(Damaged, match="already written"):
        write_receipt(directory, receipt(scan=None), seed)
    for number, previous in ((2, "0" * 64), (3, chain_head(directory).digest)):
        with pytest.raises(Damaged, match="does not follow"):
            write_receipt(directory, receipt(number=number, previous=previous), seed)
    assert [p.name for p in directory.iterdir()] == [path.name]
    assert path.read_bytes() == before
