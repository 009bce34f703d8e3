"""Signed envelopes: DSSE around canonical JSON, under one Ed25519 key.

Guarantees: `open_envelope` returns a payload only when the whole file is, byte for byte, the one
canonical encoding of an envelope signed by the key it was given; so any changed byte is refused,
white space, key hint and unused base64 bits included, and each reason has its own message. The key
comes from the caller, never from the envelope. Equal payload and key give equal bytes.

Does not guarantee: that what was signed is true, or who holds the key.

Formats: DSSE v1.0.2 (https://github.com/secure-systems-lab/dsse, PAE in `protocol.md`), RFC 8785
(canonical JSON), RFC 8032 (Ed25519), RFC 8410 (the key as PEM SubjectPublicKeyInfo). The envelope
is stricter than DSSE asks: exactly one signature, standard base64 with padding, and a `keyid` that
is the SHA-256 of the DER SubjectPublicKeyInfo in hex.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from llm_unlearn.errors import Damaged, KeysMissing, VerificationFailed

PAYLOAD_TYPE: Final = "application/vnd.llm-unlearn.receipt+json"
MAX_BYTES: Final = 16 * 1024 * 1024
"""Longest envelope that is looked at, in bytes."""

_ASK_AGAIN: Final = "Ask whoever issued it for the original file."
_SIGNATURE_BYTES: Final = 64


class _DuplicateKeyError(ValueError):
    """A JSON object names the same key twice."""


def canonical(value: Mapping[str, Any]) -> bytes:
    """The RFC 8785 encoding of `value`, UTF-8.

    Raises:
        rfc8785.CanonicalizationError: `value` has no canonical form (a number past 2**53, NaN).
    """
    return rfc8785.dumps(dict(value))


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def public_key(seed: bytes) -> bytes:
    """The 32-byte Ed25519 public key of a 32-byte seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def public_pem(seed: bytes) -> bytes:
    """The public key of `seed` as PEM SubjectPublicKeyInfo: the file that auditors are given."""
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: bytes) -> str:
    """SHA-256 of the DER SubjectPublicKeyInfo of a 32-byte public key, 64 hex digits.

    The same as `openssl pkey -pubin -in key.pem -outform DER | sha256sum`.
    """
    der = Ed25519PublicKey.from_public_bytes(key).public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def load_public(path: Path) -> bytes:
    """Read a public key file (PEM SubjectPublicKeyInfo, Ed25519) as 32 bytes.

    Raises:
        KeysMissing: there is no such file, or it cannot be read.
        Damaged: it is not a PEM public key, or not an Ed25519 one.
    """
    remedy = "Give the .pem file that the issuer published."
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KeysMissing(
            f"the public key {path} cannot be read: {error.strerror}.", remedy
        ) from error
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Damaged(f"{path} is not a PEM public key.", remedy) from error
    if not isinstance(key, Ed25519PublicKey):
        raise Damaged(f"{path} holds a key of another kind than Ed25519.", remedy)
    return key.public_bytes_raw()


def sign(payload: Mapping[str, Any], seed: bytes, kind: str = PAYLOAD_TYPE) -> dict[str, Any]:
    """Wrap `payload` of a type in an envelope signed by the 32-byte `seed`.

    Raises:
        rfc8785.CanonicalizationError: `payload` has no canonical form.
    """
    body = canonical(payload)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    signature = key.sign(pae(kind, body))
    keyid = fingerprint(key.public_key().public_bytes_raw())
    return {
        "payload": base64.b64encode(body).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
    }


def open_envelope(data: bytes, public_key: bytes, wanted: str = PAYLOAD_TYPE) -> dict[str, Any]:
    """The payload of an envelope file, once everything about it has been checked.

    Args:
        data: the whole file.
        public_key: the 32-byte Ed25519 key to trust, from outside the envelope.
        wanted: the type that the payload must have.

    Raises:
        VerificationFailed: too long, not JSON, trailing data, a duplicate key, not canonical,
            not an envelope, wrong payload type, wrong key, bad signature; one message each.
    """
    what = "receipt" if wanted == PAYLOAD_TYPE else "proof"
    envelope = _parse(data, f"the {what}")
    kind, payload, keyid, signature = _fields(envelope)
    if kind != wanted:
        raise VerificationFailed(
            f"the envelope carries {_shown(kind)}, not a {what} ({wanted}).",
            f"Give a {what} of this package.",
        )
    expected = fingerprint(public_key)
    if keyid != expected:
        raise VerificationFailed(
            f"the {what} is signed by the key {_shown(keyid[:16])}, and the key given is "
            f"{expected[:16]}.",
            "Get the right public key from the issuer; never take one from the receipt.",
        )
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, pae(kind, payload))
    except InvalidSignature as error:
        raise VerificationFailed(
            f"the signature does not match the {what}'s contents.", _ASK_AGAIN
        ) from error
    return _parse(payload, "the signed payload")


def _fields(envelope: dict[str, Any]) -> tuple[str, bytes, str, bytes]:
    """Payload type, payload, key id and signature of a parsed envelope."""
    signatures = envelope.get("signatures")
    strings = [envelope.get("payload"), envelope.get("payloadType")]
    if isinstance(signatures, list) and len(signatures) == 1 and isinstance(signatures[0], dict):
        strings += [signatures[0].get("keyid"), signatures[0].get("sig")]
        keys = set(signatures[0])
    else:
        keys = set()
    if (
        set(envelope) != {"payload", "payloadType", "signatures"}
        or keys != {"keyid", "sig"}
        or not all(isinstance(value, str) for value in strings)
    ):
        raise VerificationFailed(
            "the file is JSON but not an envelope with one payload and one signature.", _ASK_AGAIN
        )
    payload, kind, keyid, signature = (str(value) for value in strings)
    raw = _unbase64(signature, "signature")
    if len(raw) != _SIGNATURE_BYTES:
        raise VerificationFailed(
            f"the signature is {len(raw)} bytes long, not {_SIGNATURE_BYTES}.", _ASK_AGAIN
        )
    return kind, _unbase64(payload, "payload"), keyid, raw


def _unbase64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationFailed(f"the {what} is not base64.", _ASK_AGAIN) from error
    if base64.b64encode(data).decode() != text:  # unused bits of the last digit
        raise VerificationFailed(
            f"the {what} is not in canonical base64: the file was changed.", _ASK_AGAIN
        )
    return data


def _parse(data: bytes, what: str) -> dict[str, Any]:
    """One JSON object that fills `data` and is its own canonical encoding."""
    if len(data) > MAX_BYTES:
        raise VerificationFailed(
            f"{what} is {len(data)} bytes long, more than {MAX_BYTES}.", "Is this a receipt?"
        )
    try:
        text = data.decode().lstrip(" \t\r\n")
        value, end = _DECODER.raw_decode(text)
    except _DuplicateKeyError as error:
        raise VerificationFailed(
            f"{what} names the key {_shown(str(error))} twice in one object.", _ASK_AGAIN
        ) from error
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"{what} is not JSON in UTF-8.", _ASK_AGAIN) from error
    if end != len(text):
        extra = len(text[end:].encode())
        raise VerificationFailed(
            f"{what} is followed by {extra} more {'byte' if extra == 1 else 'bytes'}.", _ASK_AGAIN
        )
    if not isinstance(value, dict):
        raise VerificationFailed(f"{what} is not a JSON object.", _ASK_AGAIN)
    try:
        same = rfc8785.dumps(value) == data
    except (rfc8785.CanonicalizationError, RecursionError):
        same = False
    if not same:
        raise VerificationFailed(
            f"{what} is not in canonical JSON (RFC 8785): bytes of it were changed.", _ASK_AGAIN
        )
    return value


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKeyError(key)
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _shown(text: str) -> str:
    """Text of an unverified file, fit for one line of a terminal."""
    return ascii(text[:80])
