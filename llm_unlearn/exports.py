"""Adapters written out for other programs, and the register of what was written where.

Guarantees: an export is a plain PEFT folder, whole or not there; it is registered, durably, before it is
written, so that none is forgotten by a crash; an entry is sealed under a key of its own and holds no
text; a takedown that touches a document which an exported adapter had learned names that export as
owed, until the operator says that it is gone.

Not guaranteed: anything about the folder once it is written. It holds in the clear what the adapter
learned, and only whoever has it can destroy it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.files import os_errors, sync_directory
from llm_unlearn.retrieval.crypto import seal, unseal
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring

if TYPE_CHECKING:
    from llm_unlearn.opened import Opened

_TABLE = """
CREATE TABLE IF NOT EXISTS exports (
  number INTEGER PRIMARY KEY, slot INTEGER NOT NULL, sealed BLOB NOT NULL
)
"""


class Export(BaseModel):
    """One export as registered.

    Attributes:
        number: counted from 1.
        where: the folder, as an absolute path.
        when: RFC 3339, UTC.
        digest: SHA-256 (hex) of the plaintext of the checkpoint that was written out.
        inputs: what that checkpoint was trained on, as its slice identifies it (hex).
        handles: the documents it had learned, as keyed marks (hex).
        gone: when the operator said that the folder was destroyed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    shard: int
    checkpoint: str
    where: str
    when: str
    digest: str
    inputs: str
    handles: tuple[str, ...]
    gone: str | None = None

    @property
    def label(self) -> str:
        """What a receipt calls it: no path, no name."""
        return f"export {self.number} of shard {self.shard}, {self.when[:10]}"


class Exports:
    """The register of exports of one workspace."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring

    @staticmethod
    def create_table(database: Database) -> None:
        """Make the table where it is not yet."""
        with database.transaction() as connection:
            connection.execute(_TABLE)

    def all(self) -> list[Export]:
        """Every export, in order.

        Raises:
            Damaged: an entry is not what was written.
        """
        with self._database.reading() as connection:
            table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'exports'"
            if connection.execute(table).fetchone() is None:
                return []  # made before exports were registered, and not written to since
            rows = connection.execute(
                "SELECT number, slot, sealed FROM exports ORDER BY number"
            ).fetchall()
        return [
            Export.model_validate_json(unseal(self._keyring.key(slot), bytes(sealed), _aad(number)))
            for number, slot, sealed in rows
        ]

    def owed(self, handles: Collection[bytes]) -> list[Export]:
        """Exports, not said to be gone, of adapters that had learned one of these documents."""
        wanted = {handle.hex() for handle in handles}
        return [e for e in self.all() if e.gone is None and not wanted.isdisjoint(e.handles)]

    def add(self, export: Export) -> None:
        """Register an export, durably."""
        ((slot, key),) = self._keyring.new_keys(1)
        with self._database.transaction() as connection:
            connection.execute("INSERT INTO slots (slot) VALUES (?)", (slot,))
            connection.execute(
                "INSERT INTO exports VALUES (?, ?, ?)",
                (export.number, slot, _sealed(key, export)),
            )

    def settle(self, where: Path) -> list[Export]:
        """Record that what was exported to a folder is destroyed.

        Raises:
            NotFound: nothing that is not settled was exported there.
        """
        place = str(where.absolute())
        found = [e for e in self.all() if e.where == place and e.gone is None]
        if not found:
            raise NotFound(f"No export to {place} is registered as still there.", "Check the path.")
        settled = [e.model_copy(update={"gone": now()}) for e in found]
        with self._database.transaction() as connection:
            for export in settled:
                (slot,) = connection.execute(
                    "SELECT slot FROM exports WHERE number = ?", (export.number,)
                ).fetchone()
                connection.execute(
                    "UPDATE exports SET sealed = ? WHERE number = ?",
                    (_sealed(self._keyring.key(slot), export), export.number),
                )
        return settled


def export_shard(opened: Opened, shard: int, out: Path) -> Export:
    """Write the adapter that serves for a shard as a PEFT folder, and register that.

    The caller holds the workspace's lock.

    Raises:
        NotFound: there is no such shard, or no adapter serves for it.
        InputError: the folder is there already, or would lie inside the workspace.
        Damaged: the checkpoint cannot be read.
        EnvironmentFailure: it cannot be written.
    """
    import safetensors.torch

    out = out.absolute()
    if out.resolve().is_relative_to(opened.path.resolve()):
        raise InputError(
            f"{out} lies inside the workspace, which holds nothing in the clear.",
            "Choose a folder outside it.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already.", "Choose a new folder.")
    state = next((s for s in opened.states() if s.shard == shard), None)
    if state is None or state.serving is None:
        raise NotFound(
            f"No adapter serves for shard {shard}.", "Run `llm-unlearn status` to see which do."
        )
    register = Exports(opened.database, opened.keyring)
    listed = opened.checkpoints.listed()[state.serving.name]
    adapter = opened.checkpoints.load(listed).adapter
    host = opened.models.host
    export = Export(
        number=len(register.all()) + 1,
        shard=shard,
        checkpoint=listed.name,
        where=str(out),
        when=now(),
        digest=opened.checkpoints.digest(listed),
        inputs=listed.inputs.hex(),
        handles=tuple(
            record.handle.hex() for part in state.wanted[: state.clean] for record in part.records
        ),
    )
    with os_errors(f"write {out}"):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{out.parent} is no folder.", "Choose another place.") from error
        register.add(export)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            config = host.config
            config.base_model_name_or_path = host.base.reference
            config.inference_mode = True
            config.save_pretrained(str(beside))
            safetensors.torch.save_file(
                {name: tensor.contiguous() for name, tensor in sorted(adapter.items())},
                beside / "adapter_model.safetensors",
                {"format": "pt"},
            )
            sync_directory(beside)
            if out.exists():
                out.rmdir()  # empty, as checked above
            beside.rename(out)
            sync_directory(out.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return export


def now() -> str:
    """This moment as RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sealed(key: bytes, export: Export) -> bytes:
    return seal(key, export.model_dump_json().encode(), _aad(export.number))


def _aad(number: int) -> bytes:
    return b"export\0" + number.to_bytes(8, "big")
