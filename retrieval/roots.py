"""Root keys: what wraps a keyring's key-encryption key (KEK), and nothing else.

Guarantees: `FileRoot` keeps its key in a file of mode 0600 that is only ever changed in place, so a
retired key is gone from the disk; a damaged entry is noticed. It does not protect against someone
who can read the file, and a file system that copies on write keeps the old blocks. A root whose
`rotatable` is false (environment, KMS) cannot retire its key: old copies of the keyring stay
readable with it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from llm_unlearn.errors import Damaged, KeysMissing
from llm_unlearn.files import os_errors, sync_directory
from llm_unlearn.retrieval.crypto import KEY_BYTES, new_key, seal, unseal

_MAGIC = b"LLM-UNLEARN ROOT KEY 1\n".ljust(64, b"\0")
_ENTRY = 64  # identifier (16), key (32), SHA-256 of both cut to 16
_ENTRIES = 2  # one in use, one during a rotation


class RootKey(Protocol):
    """What a keyring needs of the key above it. A KMS is this protocol, written by the user.

    `name` is stored in the keyring, so that a wrong root is named; `wrap` and `unwrap` handle at
    most a few hundred bytes, once per process and per rotation.
    """

    @property
    def name(self) -> str:
        """What to call it in an error: `file`, `env:VARIABLE`, `kms:...`."""

    @property
    def rotatable(self) -> bool:
        """Whether the keyring can replace it (see `RotatableRoot`)."""

    def wrap(self, data: bytes, aad: bytes) -> bytes:
        """Encrypt and authenticate `data`, bound to `aad`."""

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Undo `wrap`; raises `Damaged` or `KeysMissing`."""


@runtime_checkable
class RotatableRoot(RootKey, Protocol):
    """A root that can make a new key and destroy the old one."""

    def renew(self) -> None:
        """Add a fresh key, durably; `wrap` uses it from now on, `unwrap` still knows the old."""

    def keep_only(self, wrapped: bytes) -> None:
        """Destroy, in place and durably, every key but the one that made `wrapped`."""


class FileRoot:
    """A root key in a file of its own, by default `root.key` in the keyring's directory.

    Put it elsewhere (`FileRoot(path)`) when the keyring's directory is copied by a backup: a copy
    of the keyring is unreadable without it.
    """

    name = "file"
    rotatable = True

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> FileRoot:
        """Make the file with a random key; raises `FileExistsError` when it is there."""
        with os_errors(f"write {path}"):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(file, _MAGIC + _entry() + bytes(_ENTRY * (_ENTRIES - 1)), 0)
                os.fsync(file)
            finally:
                os.close(file)
            sync_directory(path.parent)
        return cls(path)

    def wrap(self, data: bytes, aad: bytes) -> bytes:
        """The newest key's 16-byte identifier and the sealed data."""
        identifier, key = self._keys()[-1]
        return identifier + seal(key, data, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Undo `wrap`.

        Raises:
            KeysMissing: the file is not there, or holds other keys.
            Damaged: the file or `wrapped` is not what was written.
        """
        for identifier, key in self._keys():
            if identifier == wrapped[:16]:
                return unseal(key, wrapped[16:], aad)
        raise KeysMissing(
            f"{self.path} does not hold the key that wrapped this keyring.",
            "Put the root key back that belongs to it.",
        )

    def renew(self) -> None:
        """Write a fresh key into the free entry.

        The entry in use comes first in the file, so the fresh one is always the later of the two.
        """
        identifier, key = self._keys()[0]
        self._write([_entry(identifier, key), _entry()])

    def keep_only(self, wrapped: bytes) -> None:
        """Zero every key but the one that made `wrapped`, which moves to the first entry."""
        keys = self._keys()
        kept = [(name, key) for name, key in keys if name == wrapped[:16]]
        if not kept:
            raise KeysMissing(
                f"{self.path} does not hold the key that wrapped this keyring.",
                "Put the root key back that belongs to it.",
            )
        if len(keys) == 1 and keys == kept:
            return
        self._write([_entry(*kept[0]), bytes(_ENTRY)])

    def _write(self, entries: list[bytes]) -> None:
        # One write of 128 bytes inside one sector: a kill leaves either the old or the new.
        with os_errors(f"write {self.path}"):
            file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.pwrite(file, b"".join(entries), len(_MAGIC))
                os.fsync(file)
            finally:
                os.close(file)

    def _keys(self) -> list[tuple[bytes, bytes]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            raise KeysMissing(
                f"the root key {self.path} is not there.", "Put it back, or name where it is."
            ) from None
        found = []
        for start in range(len(_MAGIC), len(data), _ENTRY):
            entry = data[start : start + _ENTRY]
            identifier, key = entry[:16], entry[16:48]
            if any(entry) and entry == _entry(identifier, key):
                found.append((identifier, key))
        if not found or data[: len(_MAGIC)] != _MAGIC:
            raise Damaged(f"{self.path} is not a root key file.", "Put the right file back.")
        return found


def _entry(identifier: bytes | None = None, key: bytes | None = None) -> bytes:
    identifier = identifier or os.urandom(16)
    key = key or new_key()
    return identifier + key + hashlib.sha256(identifier + key).digest()[:16]


class EnvironmentRoot:
    """A root key in an environment variable: 32 bytes in base64. It cannot be rotated from here."""

    rotatable = False

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self.name = f"env:{variable}"

    def wrap(self, data: bytes, aad: bytes) -> bytes:
        """Seal `data` under the variable's key."""
        return seal(self._key(), data, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """Undo `wrap`; raises `KeysMissing` when the variable is unset or wrong."""
        try:
            return unseal(self._key(), wrapped, aad)
        except Damaged:
            raise KeysMissing(
                f"the key in {self.variable} is not the one that wrapped this keyring.",
                f"Set {self.variable} to the right key.",
            ) from None

    def _key(self) -> bytes:
        try:
            key = base64.b64decode(os.environ.get(self.variable, ""), validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_BYTES:
            raise KeysMissing(
                f"the environment variable {self.variable} does not hold a key.",
                f"Set it to {KEY_BYTES} random bytes in base64.",
            )
        return key
