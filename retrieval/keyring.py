"""Data keys: one per record, wrapped in a slot of a file outside workspace and backups.

Guarantees: a key handed out is durable before it is used; a destroyed key is zeroed in place and
synced before `destroy` returns, so that neither the file nor the blocks behind it hold it any more;
keys are read from the file on every use, so a destruction by another process is seen at once;
`rotate` replaces the key-encryption key (KEK) and every wrapping, and killed half-way leaves the
old keyring or the new one. It does not protect the bytes from whoever can read both the directory
and the root key, and it relies on the file system overwriting in place (ext4 and xfs do; a
copy-on-write file system or a snapshot keeps old blocks, which rotation makes useless to whoever
has no old root key).

Files: `keyring.json` (identity, wrapped KEK, sealed secrets), `slots-N` (64-byte slots: nonce 12,
key 32, tag 16, zeros 4; all zeros when free), `root.key` when the root is the default one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from llm_unlearn.errors import Damaged, InputError, KeyDestroyed, KeysMissing, NotFound
from llm_unlearn.files import os_errors, sync_directory
from llm_unlearn.retrieval import keyheader
from llm_unlearn.retrieval.crypto import KEY_BYTES, NONCE_BYTES, new_key
from llm_unlearn.retrieval.keyheader import Header
from llm_unlearn.retrieval.roots import EnvironmentRoot, FileRoot, RootKey, RotatableRoot

SECRETS = ("ids", "placement", "tombstones", "signing")
SLOT_BYTES = 64
_WRAPPED = NONCE_BYTES + KEY_BYTES + 16
_GROW = 1024  # slots added at a time: one 64 KiB extent, most of it a hole at first
_ZERO = bytes(SLOT_BYTES)


class Keyring:
    """The keys of one workspace. Thread-safe; one process at a time may call the writing methods.

    Build it with `create` or `open`.
    """

    def __init__(self, directory: Path, root: RootKey) -> None:
        self.directory = directory
        self.root = root
        self._lock = threading.RLock()
        self._free: set[int] | None = None
        self._kept: set[int] = set()  # zero, and not to be taken yet
        self._file: int | None = None
        self._state = keyheader.read(self.directory, self.root)

    @classmethod
    def create(
        cls,
        directory: Path,
        root: RootKey | None = None,
        secrets: Mapping[str, bytes] | None = None,
    ) -> Keyring:
        """Make the directory (mode 0700) with a new identity, KEK, secrets and no data key.

        Args:
            directory: must not hold a keyring yet.
            root: wraps the KEK; default a `FileRoot` in `directory`.
            secrets: 32-byte values for some of `SECRETS`, for experiments that must repeat a
                placement; the rest are random.

        Raises:
            InputError: a keyring is there already, or a secret is unknown or of the wrong length.
        """
        given = dict(secrets or {})
        for name, value in given.items():
            if name not in SECRETS or len(value) != KEY_BYTES:
                raise InputError(
                    f"the secret {name!r} of {len(value)} bytes cannot be set.",
                    f"Give {KEY_BYTES} bytes for one of {', '.join(SECRETS)}.",
                )
        if (directory / keyheader.NAME).exists():
            raise InputError(f"{directory} holds a keyring already.", "Open it, or choose another.")
        with os_errors(f"write {directory}"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        if root is None:
            path = directory / "root.key"
            # A creation that was killed may have left a root key that wraps nothing yet.
            root = FileRoot(path) if path.exists() else FileRoot.create(path)
        _write_slots(directory / "slots-1", bytes(_GROW * SLOT_BYTES))
        values = {name: given.get(name, new_key()) for name in SECRETS}
        keyheader.write(directory, root, Header(os.urandom(16), 1, new_key(), values))
        return cls(directory, root)

    @classmethod
    def open(cls, directory: Path, root: RootKey | None = None) -> Keyring:
        """Open an existing keyring.

        Raises:
            KeysMissing: no keyring there, or its root is not at hand.
            Damaged: one of its files is not what was written.
        """
        name = keyheader.root_name(directory)
        if root is None and name == "file":
            root = FileRoot(directory / "root.key")
        elif root is None and name.startswith("env:"):
            root = EnvironmentRoot(name.removeprefix("env:"))
        if root is None or root.name != name:
            raise KeysMissing(
                f"the keys in {directory} are wrapped by {name!r}.", "Pass that root."
            )
        return cls(directory, root)

    def close(self) -> None:
        """Close the slot file; the next use opens it again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    @property
    def identity(self) -> bytes:
        """16 random bytes, fixed at `create`."""
        return self._state.identity

    def secret(self, name: str) -> bytes:
        """One of the 32-byte `SECRETS`; they outlive rotations. Raises `NotFound`."""
        try:
            return self._state.secrets[name]
        except KeyError:
            raise NotFound(f"no secret {name!r}.", f"Known: {', '.join(SECRETS)}.") from None

    # --- data keys

    def new_keys(self, n: int) -> list[tuple[int, bytes]]:
        """Make `n` data keys, pairs of slot and 32-byte key, durable when returned; see `keep`."""
        with self._lock:
            state, file = self._current()
            if self._free is None:
                used = self._occupied(file)
                self._free = set(np.flatnonzero(~used).tolist()) - self._kept
            if len(self._free) < n:
                size = os.fstat(file).st_size // SLOT_BYTES
                more = max(_GROW, size // 4, n - len(self._free))
                with os_errors(f"write {self.directory}"):
                    os.ftruncate(file, (size + more) * SLOT_BYTES)
                self._free.update(range(size, size + more))
            slots = sorted(self._free.pop() for _ in range(n))
            keys = [new_key() for _ in slots]
            cipher = AESGCM(state.kek)
            wrapped = [
                _wrap(cipher, key, _slot_aad(state, slot))
                for slot, key in zip(slots, keys, strict=True)
            ]
            self._put(file, dict(zip(slots, wrapped, strict=True)))
            return list(zip(slots, keys, strict=True))

    def key(self, slot: int) -> bytes:
        """The data key in `slot`, read from the file now.

        Raises:
            KeyDestroyed: the slot is zero.
            Damaged: the slot is not what was written, or lies outside the file.
        """
        found = self.keys([slot])[0]
        if found is None:
            raise KeyDestroyed(f"the key in slot {slot} has been destroyed.")
        return found

    def keys(self, slots: Sequence[int]) -> list[bytes | None]:
        """The data keys in `slots`, None where destroyed; raises `Damaged` as `key` does."""
        with self._lock:
            while True:
                state, file = self._current()
                found = self._unwrap_all(state, file, slots)
                # A zero may come from a rotation that zeroed this file after we opened it; then
                # the header has moved on and the answer is in the new file.
                if (
                    all(key is not None for key in found)
                    or keyheader.stamp(self.directory) == state.stamp
                ):
                    return found

    def destroy(self, slots: Iterable[int]) -> None:
        """Zero the slots in place and sync; slots that are zero already stay so.

        No new key takes them before `free`: what still names them must be gone first, or it would
        seem to have a key again.
        """
        with self._lock:
            file = self._current()[1]
            size = os.fstat(file).st_size // SLOT_BYTES
            gone = sorted({slot for slot in slots if 0 <= slot < size})
            if not gone:
                return
            self._kept.update(gone)
            self._put(file, dict.fromkeys(gone, _ZERO))

    def free(self, slots: Iterable[int]) -> None:
        """Let new keys take destroyed slots: once nothing names them any more, durably."""
        with self._lock:
            gone = self._kept.intersection(slots)
            self._kept -= gone
            if self._free is not None:
                self._free |= gone

    def keep(self, slots: Iterable[int]) -> None:
        """Say which zero slots are still named somewhere: no new key takes them before `free`."""
        with self._lock:
            self._kept, self._free = set(slots), None

    def zero_slots(self) -> list[int]:
        """The slots that hold no key, in order."""
        with self._lock:
            zero: list[int] = np.flatnonzero(~self._occupied(self._current()[1])).tolist()
            return zero

    def live_slots(self) -> set[int]:
        """The slots that hold a key."""
        with self._lock:
            return set(np.flatnonzero(self._occupied(self._current()[1])).tolist())

    @property
    def capacity(self) -> int:
        """Slots in the file, free or not; a record whose slot lies beyond means a cut file."""
        with self._lock:
            return os.fstat(self._current()[1]).st_size // SLOT_BYTES

    # --- rotation

    def rotate(self) -> None:
        """Replace KEK and, where the root can be, the root key; re-wrap everything.

        Data keys and secrets keep their values. Copies of the directory made before are useless
        afterwards when the root is rotatable; see `stays_readable` when it is not. Killed at any
        point, call `recover` (the next writer does) and rotate again.
        """
        with self._lock:
            self.recover()
            state, file = self._current()
            if isinstance(self.root, RotatableRoot):
                self.root.renew()
            after = replace(state, epoch=state.epoch + 1, kek=new_key())
            path = self.directory / f"slots-{after.epoch}"
            slots = np.flatnonzero(self._occupied(file)).tolist()
            keys = self._unwrap_all(state, file, slots)
            data = bytearray(os.fstat(file).st_size)
            cipher = AESGCM(after.kek)
            for slot, key in zip(slots, keys, strict=True):
                assert key is not None
                start = slot * SLOT_BYTES
                data[start : start + SLOT_BYTES] = _wrap(cipher, key, _slot_aad(after, slot))
            _write_slots(path, bytes(data))
            with (self.directory / keyheader.NAME).open("r+b") as old:
                keyheader.write(self.directory, self.root, after)
                # The rename freed the old header's blocks with the old wrapped KEK in them.
                old.write(bytes(os.fstat(old.fileno()).st_size))
                old.flush()
                os.fsync(old.fileno())
            self._current()
            self.recover()

    def stays_readable(self) -> str:
        """What can still read an old copy of this directory after `rotate`; empty if nothing."""
        if self.root.rotatable:
            return ""
        return (
            f"the root {self.root.name!r} cannot be rotated from here: an old copy of "
            f"{self.directory} stays readable to whoever holds that root key"
        )

    def recover(self) -> None:
        """Finish or undo a rotation that was killed: only the current files and root key stay.

        For the one writer, when it opens; what it believed free may have been taken by another
        writer since, so it looks again. Call `keep` then.
        """
        with self._lock:
            self._free = None
            state = self._current()[0]
            stale = [*self.directory.glob("slots-*"), *self.directory.glob(".keyring.json.*.tmp")]
            with os_errors(f"write {self.directory}"):
                for path in stale:
                    if path.name != f"slots-{state.epoch}":
                        keyheader.zero_file(path)
                        path.unlink()
                sync_directory(self.directory)
            if isinstance(self.root, RotatableRoot):
                self.root.keep_only(state.wrapped_kek)

    # --- inside

    def _moved(self, state: Header) -> bool:
        return keyheader.stamp(self.directory) != state.stamp

    def _current(self) -> tuple[Header, int]:
        """The state that the header on disk describes now, and its open slot file."""
        if self._moved(self._state):
            self.close()
            self._state = keyheader.read(self.directory, self.root)
            self._free = None
        if self._file is None:
            path = self.directory / f"slots-{self._state.epoch}"
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise KeysMissing(f"the key file {path} is not there.", "Put it back.") from None
            except OSError:
                with os_errors(f"read {path}"):
                    self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(self._file).st_size
            if size == 0 or size % SLOT_BYTES:
                raise Damaged(f"the key file {path} has been cut to {size} bytes.", "Put it back.")
        return self._state, self._file

    def _occupied(self, file: int) -> NDArray[np.bool_]:
        data = os.pread(file, os.fstat(file).st_size, 0)
        # Eight 64-bit words per slot; any set bit means taken.
        words = np.frombuffer(data, dtype=np.uint64).reshape(-1, SLOT_BYTES // 8)
        return np.asarray(words.any(axis=1))

    def _unwrap_all(self, state: Header, file: int, slots: Sequence[int]) -> list[bytes | None]:
        decrypt = AESGCM(state.kek).decrypt
        found: list[bytes | None] = []
        read = _slot_reader(file, slots)
        for slot in slots:
            entry = read(slot)
            if len(entry) < SLOT_BYTES:
                raise Damaged(f"key slot {slot} lies outside the key file.", "Put the file back.")
            if entry == _ZERO:
                found.append(None)
                continue
            try:
                nonce, body = entry[:NONCE_BYTES], entry[NONCE_BYTES:_WRAPPED]
                found.append(decrypt(nonce, body, _slot_aad(state, slot)))
            except InvalidTag:
                # The bytes may have been zeroed or rotated between two reads; look once more.
                if (
                    keyheader.stamp(self.directory) != state.stamp
                    or _slot_reader(file, [slot])(slot) == _ZERO
                ):
                    found.append(None)
                    continue
                raise Damaged(f"key slot {slot} fails authentication.", "Put it back.") from None
        return found

    def _put(self, file: int, entries: Mapping[int, bytes]) -> None:
        """Write whole slots in place, neighbours together, and sync."""
        with os_errors(f"write {self.directory}"):
            for start, run in _runs(entries):
                data = memoryview(b"".join(run))
                at = start * SLOT_BYTES
                while data:
                    done = os.pwrite(file, data, at)
                    data, at = data[done:], at + done
            os.fdatasync(file)


def _runs(entries: Mapping[int, bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Consecutive slots as (first slot, their bytes)."""
    first, run = -1, list[bytes]()
    for slot in sorted(entries):
        if slot != first + len(run):
            if run:
                yield first, run
            first, run = slot, []
        run.append(entries[slot])
    if run:
        yield first, run


def _slot_reader(file: int, slots: Sequence[int]) -> Callable[[int], bytes]:
    """A function from slot to its bytes: one read of the whole file pays off for many slots."""
    if len(slots) < 256:
        return lambda slot: os.pread(file, SLOT_BYTES, slot * SLOT_BYTES)
    data = os.pread(file, os.fstat(file).st_size, 0)
    return lambda slot: data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]


def _wrap(cipher: AESGCM, key: bytes, aad: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return (nonce + cipher.encrypt(nonce, key, aad)).ljust(SLOT_BYTES, b"\0")


def _slot_aad(header: Header, slot: int) -> bytes:
    return header.aad(slot.to_bytes(8, "little"))


def _write_slots(path: Path, data: bytes) -> None:
    with os_errors(f"write {path}"):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        sync_directory(path.parent)
