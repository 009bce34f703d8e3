"""The envelope: formats against their specifications, and no changed byte gets through."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_unlearn.errors import Damaged, KeysMissing, VerificationFailed
from llm_unlearn.takedown.envelope import (
    PAYLOAD_TYPE,
    canonical,
    fingerprint,
    load_public,
    open_envelope,
    pae,
    public_key,
    public_pem,
    sign,
)

SEED = bytes(range(32))
KEY = public_key(SEED)
PAYLOAD = {"b": 1, "a": ["é", "\u20ac", "x" * 40]}
FILE = canonical(sign(PAYLOAD, SEED))


def test_pae_is_that_of_the_dsse_specification() -> None:
    """protocol.md, test vector: PAE("http://example.com/HelloWorld", "hello world")."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected


def test_the_key_is_that_of_rfc_8032() -> None:
    """RFC 8032, section 7.1, TEST 1: secret key and public key."""
    secret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert public_key(bytes.fromhex(secret)).hex() == public


def test_canonical_json_is_that_of_rfc_8785() -> None:
    """RFC 8785, section 3.2.3: keys sorted by UTF-16 code units, U+1F600 before U+FB33."""
    value = {"\u20ac": "Euro", "\r": "CR", "\ufb33": "Dalet", "1": "One", "\U0001f600": "Smile"}
    assert list(json.loads(canonical(value))) == ["\r", "1", "\u20ac", "\U0001f600", "\ufb33"]


def test_the_fingerprint_is_that_of_the_key_file() -> None:
    body = "".join(public_pem(SEED).decode().splitlines()[1:-1])
    assert fingerprint(KEY) == hashlib.sha256(base64.b64decode(body)).hexdigest()


def test_what_is_signed_comes_back() -> None:
    assert open_envelope(FILE, KEY) == PAYLOAD
    assert canonical(sign(PAYLOAD, SEED)) == FILE


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")),
        st.recursive(
            st.integers(-(2**53) + 1, 2**53 - 1)
            | st.booleans()
            | st.none()
            | st.text(st.characters(codec="utf-8")),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_any_payload_comes_back(payload: dict[str, Any]) -> None:
    assert open_envelope(canonical(sign(payload, SEED)), KEY) == payload


def test_every_byte_matters() -> None:
    """Every position once with a random pattern, and a seeded sample with every pattern."""
    dice = random.Random(0)
    flips = [(at, dice.randrange(1, 256)) for at in range(len(FILE))]
    flips += [(at, bits) for at in dice.sample(range(len(FILE)), 8) for bits in range(1, 256)]
    for at, bits in flips:
        changed = bytearray(FILE)
        changed[at] ^= bits
        with pytest.raises(VerificationFailed):
            open_envelope(bytes(changed), KEY)


def test_every_cut_and_every_insertion_matters() -> None:
    for at in range(len(FILE)):
        for changed in (FILE[:at], FILE[:at] + b" " + FILE[at:], FILE[:at] + FILE[at + 1 :]):
            with pytest.raises(VerificationFailed):
                open_envelope(changed, KEY)


def envelope(**changes: Any) -> bytes:
    return canonical(sign(PAYLOAD, SEED) | changes)


def other_signature(**changes: str) -> list[dict[str, str]]:
    return [sign(PAYLOAD, SEED)["signatures"][0] | changes]


def test_each_refusal_has_its_own_message() -> None:
    pretty = json.dumps(json.loads(FILE), indent=1).encode()
    short = base64.b64encode(b"x" * 63).decode()
    flipped = base64.b64encode(b"\0" * 64).decode()
    body = base64.b64encode(b'{"a": 1}').decode()
    signed_by_hand = sign_raw(b'{"a": 1}')
    cases = {
        b"": "not JSON",
        b"\xff\xfe": "not JSON",
        b'{"a":NaN}': "not JSON",
        b"[" * 100_000: "not JSON",
        b"[]": "not a JSON object",
        b"{}": "not an envelope",
        FILE + b"\n": "followed by 1 more byte",
        FILE + FILE: f"followed by {len(FILE)} more bytes",
        b" " + FILE: "not in canonical JSON",
        pretty: "not in canonical JSON",
        FILE.replace(b'{"payload"', b'{"payload":"","payload"'): "twice in one object",
        envelope(extra=1): "not an envelope",
        envelope(signatures=[]): "not an envelope",
        envelope(signatures=other_signature() * 2): "not an envelope",
        envelope(payload=3): "not an envelope",
        envelope(payload="a!"): "payload is not base64",
        envelope(payload="YR=="): "not in canonical base64",
        envelope(payloadType="text/plain"): "not a receipt",
        envelope(
            signatures=other_signature(keyid="0" * 64)
        ): "signed by the key '0000000000000000'",
        envelope(signatures=other_signature(sig=short)): "63 bytes long",
        envelope(signatures=other_signature(sig=flipped)): "signature does not match",
        envelope(payload=body): "signature does not match",
        signed_by_hand: "the signed payload is not in canonical JSON",
        b"{" + b" " * (16 * 1024 * 1024) + b"}": "bytes long, more than",
    }
    messages = set()
    for data, expected in cases.items():
        with pytest.raises(VerificationFailed, match=expected) as caught:
            open_envelope(data, KEY)
        assert "\n" not in str(caught.value)
        messages.add(caught.value.problem)
    assert len(messages) == 15


def sign_raw(payload: bytes) -> bytes:
    """An envelope with a good signature over bytes that are not canonical JSON."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.from_private_bytes(SEED).sign(pae(PAYLOAD_TYPE, payload))
    return envelope(
        payload=base64.b64encode(payload).decode(),
        signatures=other_signature(sig=base64.b64encode(made).decode()),
    )


def test_another_key_is_refused_by_name() -> None:
    other = public_key(b"\1" * 32)
    with pytest.raises(VerificationFailed, match=fingerprint(KEY)[:16]) as caught:
        open_envelope(FILE, other)
    assert fingerprint(other)[:16] in str(caught.value)


def test_the_key_inside_is_never_used() -> None:
    """Someone signs with their own key and writes the trusted key's id beside it."""
    forged = sign(PAYLOAD, b"\1" * 32)
    forged["signatures"][0]["keyid"] = fingerprint(KEY)
    with pytest.raises(VerificationFailed, match="signature does not match"):
        open_envelope(canonical(forged), KEY)


def test_key_files(tmp_path: Path) -> None:
    good = tmp_path / "good.pem"
    good.write_bytes(public_pem(SEED))
    assert load_public(good) == KEY
    with pytest.raises(KeysMissing, match="No such file"):
        load_public(tmp_path / "none.pem")
    damaged = tmp_path / "damaged.pem"
    for data in (b"", public_pem(SEED)[:-40], b"\xff" * 20, string.printable.encode()):
        damaged.write_bytes(data)
        with pytest.raises(Damaged, match="not a PEM public key"):
            load_public(damaged)
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    damaged.write_bytes(curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(Damaged, match="another kind"):
        load_public(damaged)
