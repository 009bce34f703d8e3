"""API keys: who may do what, and see which documents.

    WS/api-keys.json    one entry a key: name, role, groups, SHA-256 of the key, dates

A key is 256 random bits, so its plain hash tells nothing and needs no salt; the key itself is shown
once and kept nowhere.

    reader      asks, searches, embeds: within its groups
    operator    that, and documents, takedowns, status, metrics
    auditor     receipts, the list of takedowns, status: no text of any document or request

Guarantees: fails closed. No file, a damaged file, an unknown, revoked or expired key: no access. A
revocation counts from the next request on, in every process that serves. It does not protect the
file from whoever can write the workspace.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_unlearn.documents import Name
from llm_unlearn.errors import AccessDenied, Damaged, InputError, NotFound, WorkspaceLocked
from llm_unlearn.files import write_atomic
from llm_unlearn.retrieval.lock import WriterLock

Role = Literal["reader", "operator", "auditor"]
FILE: Final = "api-keys.json"
_PREFIX: Final = "lu-"
_PATIENCE: Final = 5.0


class Key(BaseModel):
    """One API key as it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="what lists and logs call it: the start of its hash")
    name: Name
    role: Role
    groups: tuple[Name, ...] = ()
    sha256: str
    created: datetime
    expires: date | None = None
    revoked: datetime | None = None

    def live(self, now: datetime) -> bool:
        """Whether it opens anything now; it does on the day it expires."""
        return self.revoked is None and (self.expires is None or now.date() <= self.expires)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[Key] = []


class AccessKeys:
    """The API keys of one workspace. Thread-safe; reads the file again whenever it changed."""

    def __init__(self, workspace: Path) -> None:
        self.path = workspace / FILE
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._by_hash: dict[str, Key] = {}

    def all(self) -> list[Key]:
        """Every key, revoked ones too, in the order they were made.

        Raises:
            Damaged: the file is not what was written.
        """
        try:
            written = self.path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            return _File.model_validate_json(written).keys
        except ValidationError as error:
            raise Damaged(
                f"{self.path} cannot be read.", "Restore it, or make new keys."
            ) from error

    def add(
        self, name: str, role: Role, groups: Sequence[str] = (), expires: date | None = None
    ) -> tuple[Key, str]:
        """A new key, and the words that open it, told once.

        Raises:
            InputError: an auditor with groups (it sees no text), or a name that is in use.
        """
        if role == "auditor" and groups:
            raise InputError("An auditor sees no text, so groups mean nothing.", "Leave them out.")
        told = _PREFIX + secrets.token_urlsafe(32)
        digest = _hash(told)
        key = Key(
            id=digest[:12],
            name=name,
            role=role,
            groups=tuple(sorted(set(groups))),
            sha256=digest,
            created=datetime.now(UTC).replace(microsecond=0),
            expires=expires,
        )
        with self._writing():
            keys = self.all()
            if any(k.name == name and k.live(key.created) for k in keys):
                raise InputError(
                    f"A key named {name!r} is in use.", "Revoke it, or choose another."
                )
            self._write([*keys, key])
        return key, told

    def revoke(self, which: str) -> Key:
        """End a key, by its id or name: all of that name that were not revoked, expired ones too.

        Returns:
            The one that was made last.

        Raises:
            NotFound: no key in use is called so.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        with self._writing():
            keys = self.all()
            ended = None
            for place, key in enumerate(keys):
                if which in (key.id, key.name) and key.revoked is None:
                    ended = keys[place] = key.model_copy(update={"revoked": now})
            if ended is None:
                raise NotFound(f"No API key in use is called {which!r}.", "List them first.")
            self._write(keys)
            return ended

    def check(self, told: str) -> Key:
        """The key that these words open.

        Raises:
            AccessDenied: none, or not any more.
            Damaged: the file is not what was written.
        """
        with self._lock:
            self._refresh()
            key = self._by_hash.get(_hash(told))
        if key is None or not key.live(datetime.now(UTC)):
            raise AccessDenied("This API key opens nothing.", "Ask the operator for one.")
        return key

    def still(self, key: Key) -> bool:
        """Whether a key that was checked before is still as it was; for answers that take long."""
        try:
            with self._lock:
                self._refresh()
                now = self._by_hash.get(key.sha256)
        except Damaged:
            return False
        return now == key and key.live(datetime.now(UTC))

    def _refresh(self) -> None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._seen, self._by_hash = None, {}
            return
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen != self._seen:
            self._by_hash = {}  # a file that cannot be read opens nothing
            self._seen = None
            self._by_hash = {key.sha256: key for key in self.all()}
            self._seen = seen

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # not the workspace's own lock: a key must be revocable while a takedown runs for hours
        lock, end = WriterLock(self.path.with_name(f".{FILE}.lock")), time.monotonic() + _PATIENCE
        while True:
            try:
                lock.acquire()
                break
            except WorkspaceLocked:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        try:
            yield
        finally:
            lock.release()

    def _write(self, keys: Sequence[Key]) -> None:
        body = {"version": 1, "keys": [key.model_dump(mode="json") for key in keys]}
        write_atomic(self.path, (json.dumps(body, indent=1) + "\n").encode())


def _hash(told: str) -> str:
    return hashlib.sha256(told.encode()).hexdigest()
