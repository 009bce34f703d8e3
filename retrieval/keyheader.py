"""`keyring.json`: the identity of a keyring, its wrapped key-encryption key, its sealed secrets.

Guarantees: a header that reads is the one that was written (every field is authenticated by what it
unwraps), and is replaced whole or not at all. It does not hold data keys.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_unlearn.errors import Damaged, KeysMissing
from llm_unlearn.files import write_atomic
from llm_unlearn.retrieval.crypto import seal, unseal
from llm_unlearn.retrieval.roots import RootKey

NAME = "keyring.json"
_FORMAT = 1


@dataclass(frozen=True)
class Header:
    """The header in the clear. `epoch` counts rotations and names the slot file."""

    identity: bytes
    epoch: int
    kek: bytes
    secrets: Mapping[str, bytes]
    stamp: tuple[int, int, int] = (0, 0, 0)
    wrapped_kek: bytes = b""

    def aad(self, what: bytes) -> bytes:
        """Associated data of something that belongs to this identity and epoch."""
        return _aad(self.identity, self.epoch, what)


def stamp(directory: Path) -> tuple[int, int, int]:
    """Inode, change time and size of the header: equal stamps mean an unchanged header."""
    try:
        status = (directory / NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(directory) from None
    return status.st_ino, status.st_mtime_ns, status.st_size


def root_name(directory: Path) -> str:
    """The name of the root that wrapped the header in `directory`."""
    return str(_fields(directory)[1]["root"])


def read(directory: Path, root: RootKey) -> Header:
    """Read and unwrap the header.

    Raises:
        KeysMissing: no keyring there, or `root` holds another key.
        Damaged: a field is not what was written.
    """
    while True:
        seen, fields = _fields(directory)
        try:
            identity = bytes.fromhex(fields["identity"])
            epoch = int(fields["epoch"])
            wrapped = base64.b64decode(fields["kek"], validate=True)
            sealed = base64.b64decode(fields["secrets"], validate=True)
            _aad(identity, epoch, b"")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _broken(directory) from error
        try:
            kek = root.unwrap(wrapped, _aad(identity, epoch, b"kek"))
            values = json.loads(unseal(kek, sealed, _aad(identity, epoch, b"secrets")))
        except (Damaged, KeysMissing):
            if stamp(directory) == seen:
                raise
            continue  # a rotation came between the header and the root
        secrets = {name: bytes.fromhex(value) for name, value in values.items()}
        return Header(identity, epoch, kek, secrets, seen, wrapped)


def write(directory: Path, root: RootKey, header: Header) -> None:
    """Wrap and write the header, replacing the old one whole; its `stamp` is not used."""
    secrets = json.dumps({name: value.hex() for name, value in header.secrets.items()}).encode()
    fields = {
        "format": _FORMAT,
        "identity": header.identity.hex(),
        "root": root.name,
        "epoch": header.epoch,
        "kek": base64.b64encode(root.wrap(header.kek, header.aad(b"kek"))).decode(),
        "secrets": base64.b64encode(seal(header.kek, secrets, header.aad(b"secrets"))).decode(),
    }
    write_atomic(directory / NAME, json.dumps(fields, indent=1).encode())


def zero_file(path: Path) -> None:
    """Overwrite a file with zeros in place and sync."""
    with path.open("r+b") as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        file.flush()
        os.fsync(file.fileno())


def _fields(directory: Path) -> tuple[tuple[int, int, int], dict[str, str]]:
    try:
        with (directory / NAME).open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(directory) from None
    try:
        fields = json.loads(data)
        if fields["format"] != _FORMAT or not isinstance(fields["root"], str):
            raise ValueError(fields["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(directory) from error
    return (status.st_ino, status.st_mtime_ns, status.st_size), fields


def _aad(identity: bytes, epoch: int, what: bytes) -> bytes:
    return identity + epoch.to_bytes(8, "little") + what


def _missing(directory: Path) -> KeysMissing:
    return KeysMissing(f"no keyring in {directory}.", "Give the directory that holds the keys.")


def _broken(directory: Path) -> Damaged:
    return Damaged(f"{directory / NAME} is not what was written.", "Put the file back.")
