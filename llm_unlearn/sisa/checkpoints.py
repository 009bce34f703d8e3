"""Checkpoints at rest: encrypted files, each under a key of its own that dies with it.

Guarantees: a checkpoint is listed only once its file is durable; disposing of one destroys its key in
place before its file goes, so a copy made earlier can never be read; a file that was changed is
detected, never loaded. The plaintext is one safetensors blob: adapter, AdamW's moments, step. Of a
stage that trained a block of layers it holds that block alone, and the digest of the checkpoint below it,
so that the digest of one speaks for the whole chain.
File names say shard, generation and slice, nothing of what was learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import Damaged
from llm_unlearn.files import os_errors, sync_directory, write_atomic
from llm_unlearn.retrieval.crypto import seal, unseal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.sisa.layout import Slice

if TYPE_CHECKING:
    from llm_unlearn.sisa.train import TrainState

_TABLE = """
CREATE TABLE IF NOT EXISTS checkpoints (
  name TEXT PRIMARY KEY, shard INTEGER NOT NULL, inputs BLOB NOT NULL, slot INTEGER NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Listed:
    """One checkpoint on disk: its name, its shard, the inputs it was trained on, its key's slot."""

    name: str
    shard: int
    inputs: bytes
    slot: int


@dataclass(frozen=True)
class Before:
    """The checkpoint that a block was trained upon: its inputs, and SHA-256 (hex) of its plaintext."""

    inputs: bytes
    digest: str


class Checkpoints:
    """All checkpoints of a workspace.

    Args:
        directory: where the sealed files live.
        database: the workspace's database, which lists them.
        keyring: holds their keys.
    """

    def __init__(self, directory: Path, database: Database, keyring: Keyring) -> None:
        self._directory = directory
        self._database = database
        self._keyring = keyring

    @staticmethod
    def create_table(database: Database) -> None:
        """Make the table in a new workspace."""
        with database.transaction() as connection:
            connection.execute(_TABLE)

    def listed(self) -> dict[str, Listed]:
        """All checkpoints by name."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT name, shard, inputs, slot FROM checkpoints ORDER BY name"
            ).fetchall()
        return {row[0]: Listed(*row) for row in rows}

    def path(self, name: str) -> Path:
        """The sealed file of a checkpoint."""
        return self._directory / f"{name}.sealed"

    def save(self, part: Slice, state: TrainState) -> None:
        """Write a checkpoint durably, then list it. An older one of that name must be gone.

        Raises:
            EnvironmentFailure: the disk is full; nothing is listed and the old state stands.
        """
        blob = serialise(state, self._before(part, state))
        ((slot, key),) = self._keyring.new_keys(1)
        with os_errors(f"write checkpoint {part.name}"):
            if not self._directory.is_dir():
                self._directory.mkdir(mode=0o700, exist_ok=True)
                sync_directory(self._directory.parent)
        write_atomic(self.path(part.name), seal(key, blob, _aad(part.name, part.inputs)))
        with self._database.transaction() as connection:
            connection.execute("INSERT INTO slots (slot) VALUES (?)", (slot,))
            connection.execute(
                "INSERT INTO checkpoints (name, shard, inputs, slot) VALUES (?, ?, ?, ?)",
                (part.name, part.shard, part.inputs, slot),
            )

    def plaintext(self, listed: Listed) -> bytes:
        """The decrypted bytes of a checkpoint.

        Raises:
            Damaged: the file is missing, changed, or its key is destroyed.
        """
        try:
            sealed = self.path(listed.name).read_bytes()
        except FileNotFoundError as error:
            raise Damaged(
                f"Checkpoint {listed.name} is missing from {self._directory}.",
                "Run `llm-unlearn train --repair` to build it again from the documents.",
            ) from error
        try:
            return unseal(self._keyring.key(listed.slot), sealed, _aad(listed.name, listed.inputs))
        except Damaged as error:
            raise Damaged(
                f"Checkpoint {listed.name} is damaged ({self.path(listed.name)}).",
                "Run `llm-unlearn train --repair` to build it again from the documents.",
            ) from error

    def load(self, listed: Listed) -> TrainState:
        """Read a checkpoint; one of a block together with those that it was trained upon.

        Raises:
            Damaged: see `plaintext`; or one of those is gone, or is not the one it was trained upon.
        """
        from llm_unlearn.sisa.train import TrainState

        blob = self.plaintext(listed)
        state, before = deserialise(blob), read_before(blob)
        while before is not None:
            below = self._found(before.inputs)
            blob = self.plaintext(below)
            if hashlib.sha256(blob).hexdigest() != before.digest:
                raise Damaged(
                    f"Checkpoint {below.name} is not the one that {listed.name} was trained upon.",
                    "Run `llm-unlearn train --repair` to build both again from the documents.",
                )
            earlier, before = deserialise(blob), read_before(blob)
            state = TrainState(
                {**earlier.adapter, **state.adapter}, state.moments, state.step, state.trained
            )
        return state

    def _found(self, inputs: bytes) -> Listed:
        for item in self.listed().values():
            if item.inputs == inputs:
                return item
        raise Damaged(
            "A checkpoint that another was trained upon is gone.",
            "Run `llm-unlearn train --repair` to build both again from the documents.",
        )

    def digest_of(self, inputs: bytes) -> str:
        """The digest of the checkpoint with these inputs.

        Raises:
            Damaged: there is none, or see `plaintext`.
        """
        return self.digest(self._found(inputs))

    def _before(self, part: Slice, state: TrainState) -> Before | None:
        """What a block's checkpoint was trained upon."""
        if state.trained is None or part.before is None:
            return None
        return Before(part.before, self.digest_of(part.before))

    def digest(self, listed: Listed) -> str:
        """SHA-256 (hex) of the plaintext."""
        return hashlib.sha256(self.plaintext(listed)).hexdigest()

    def unreadable(self) -> list[Listed]:
        """Checkpoints whose file is missing or changed; reads and decrypts every one."""
        broken = []
        for item in self.listed().values():
            try:
                self.load(item)
            except Damaged:
                broken.append(item)
        return broken

    def dispose(self, gone: Iterable[Listed]) -> list[str]:
        """Destroy keys first (durable), then files and their listing. Returns the names."""
        doomed = list(gone)
        self._keyring.destroy(item.slot for item in doomed)
        for item in doomed:
            self.path(item.name).unlink(missing_ok=True)
        with self._database.transaction() as connection:
            for item in doomed:
                connection.execute("DELETE FROM checkpoints WHERE name = ?", (item.name,))
                connection.execute("DELETE FROM slots WHERE slot = ?", (item.slot,))
        self._database.erase_journal()
        return [item.name for item in doomed]

    def sweep(self) -> None:
        """For the writer on open: drop what a crash left half done in either direction."""
        live = self._keyring.live_slots()
        listed = self.listed()
        self.dispose(item for item in listed.values() if item.slot not in live)
        known = {self.path(name) for name in self.listed()}
        if self._directory.is_dir():
            for pattern in ("*.sealed", ".*.tmp"):
                for file in self._directory.glob(pattern):
                    if file not in known and file.is_file():
                        file.unlink()


def serialise(state: TrainState, before: Before | None = None) -> bytes:
    """One checkpoint as safetensors bytes; equal states give equal bytes.

    Args:
        before: of a block, the checkpoint that it was trained upon. The first of a chain writes down the
            shapes of the layers that are not trained yet.
    """
    import safetensors.torch  # here, so that looking at a list of checkpoints loads no torch

    header = {"step": str(state.step)}
    own = state.adapter
    if state.trained is not None:
        own = {name: state.adapter[name] for name in state.trained}
        about: dict[str, object] = {"step": state.step, "trained": sorted(own)}
        if before is not None:
            about["before"] = [before.inputs.hex(), before.digest]
        else:
            about["zero"] = {n: list(t.shape) for n, t in state.adapter.items() if n not in own}
        # one entry: safetensors gives several in any order
        header = {"block": json.dumps(about, sort_keys=True)}
    tensors = {f"adapter.{name}": tensor for name, tensor in own.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.moments.items()}
    blob: bytes = safetensors.torch.save(
        {name: tensors[name].contiguous() for name in sorted(tensors)}, header
    )
    return blob


def deserialise(blob: bytes) -> TrainState:
    """The inverse of `serialise`; of a block that has one before it, the block's tensors alone.

    Raises:
        Damaged: not such bytes.
    """
    import safetensors.torch
    import torch
    from safetensors import SafetensorError

    from llm_unlearn.sisa.train import TrainState

    try:
        tensors = safetensors.torch.load(blob)
        about = _about(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged("A checkpoint's content is not what was written.", "Retrain.") from error
    adapter = {k.removeprefix("adapter."): v for k, v in tensors.items() if k[:8] == "adapter."}
    moments = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k[:8] != "adapter."}
    adapter |= {name: torch.zeros(shape) for name, shape in about.get("zero", {}).items()}
    trained = tuple(about["trained"]) if "trained" in about else None
    return TrainState(adapter, moments, int(about["step"]), trained)


def read_before(blob: bytes) -> Before | None:
    """What a block's checkpoint was trained upon, from its plaintext."""
    said = _about(blob).get("before")
    return None if said is None else Before(bytes.fromhex(said[0]), said[1])


def _about(blob: bytes) -> dict[str, Any]:
    length = int.from_bytes(blob[:8], "little")
    header: dict[str, str] = json.loads(blob[8 : 8 + length])["__metadata__"]
    found: dict[str, Any] = json.loads(header["block"]) if "block" in header else dict(header)
    return found


def _aad(name: str, inputs: bytes) -> bytes:
    return b"checkpoint\0" + name.encode() + b"\0" + inputs
