"""Marks and sealing."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.errors import Damaged
from llm_unlearn.retrieval.crypto import keyed_mark, new_key, seal, unseal


def test_mark_is_hmac_by_hand() -> None:
    """HMAC(k, m) = H((k ^ opad) || H((k ^ ipad) || m)), k padded to 64 bytes (RFC 2104)."""
    key = bytes(range(32))
    message = b"subject" + b"\0" + "Zoë".encode()
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in padded) + message).digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in padded) + inner).digest()
    assert keyed_mark(key, "subject", "Zoë") == outer[:16]
    assert keyed_mark(key, "subject", "Zoë".encode()) == outer[:16]


def test_mark_separates_domains() -> None:
    key = new_key()
    assert keyed_mark(key, "id", "a") != keyed_mark(key, "subject", "a")
    assert keyed_mark(key, "id", "sa") != keyed_mark(key, "ids", "a")
    assert keyed_mark(key, "id", "a") != keyed_mark(new_key(), "id", "a")


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_seal_and_unseal(plaintext: bytes, aad: bytes) -> None:
    key = new_key()
    sealed = seal(key, plaintext, aad)
    assert len(sealed) == len(plaintext) + 28
    assert unseal(key, sealed, aad) == plaintext
    assert seal(key, plaintext, aad) != sealed


@given(st.binary(min_size=1, max_size=60), st.data())
def test_any_flipped_bit_is_noticed(plaintext: bytes, data: st.DataObject) -> None:
    key, sealed = bytes(32), bytearray(seal(bytes(32), plaintext, b"aad"))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damaged):
        unseal(key, bytes(sealed), b"aad")


def test_other_aad_key_or_length_is_noticed() -> None:
    key = new_key()
    sealed = seal(key, b"text", b"one")
    for broken in ((key, sealed, b"two"), (new_key(), sealed, b"one"), (key, sealed[:20], b"one")):
        with pytest.raises(Damaged):
            unseal(*broken)
