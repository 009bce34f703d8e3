"""Keyed marks and authenticated encryption: the two primitives that the vault stands on.

Guarantees: a mark tells nothing about its value without the key, and equal values give equal marks;
`unseal` returns exactly what was sealed with the same key and associated data, or raises. It does
not hide the length of the plaintext, and the caller must not seal more than 2^32 messages under one
key (nonces are random 96-bit values, NIST SP 800-38D section 8.3).
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llm_unlearn.errors import Damaged

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
MARK_BYTES = 16


def new_key() -> bytes:
    """A random 256-bit key."""
    return os.urandom(KEY_BYTES)


def keyed_mark(key: bytes, domain: str, value: str | bytes) -> bytes:
    """The 16-byte mark that stands for `value` wherever the value itself must not be written.

    HMAC-SHA256(key, domain || 0x00 || value) cut to 16 bytes; strings count as UTF-8. The domain
    must hold no NUL.
    """
    data = value.encode() if isinstance(value, str) else value
    return hmac.digest(key, domain.encode() + b"\0" + data, "sha256")[:MARK_BYTES]


def seal(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """AES-256-GCM: nonce (12 bytes), ciphertext, tag (16 bytes); `aad` is bound but not stored."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def unseal(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """The plaintext of `seal`.

    Raises:
        Damaged: the bytes, the key or the associated data differ from what was sealed.
    """
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise Damaged(f"a sealed record of {len(sealed)} bytes is too short.", "Restore a backup.")
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
    except InvalidTag:
        raise Damaged("a sealed record fails authentication.", "Restore a backup.") from None
