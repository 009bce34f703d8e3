"""Adapters and audit kits written out for others, and the register of what was written where.

Guarantees: an export is a plain PEFT folder, whole or not there; it is registered, durably, before it is
written, so that none is forgotten by a crash; what a killed export left in its temporary folder is removed
by the next writer, or when the export is said to be gone; an entry is sealed under a key of its own and
holds no text; a takedown that touches a document which an exported adapter had learned, or which a kit
holds, names that export as owed, until the operator says that it is gone.

Not guaranteed: anything about the folder once it is written. It holds in the clear what the adapter
learned, or the text itself, and only whoever has it can destroy it.
"""

from __future__ import annotations

import hmac
import json
import os
import shutil
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from llm_unlearn.errors import EnvironmentFailure, InputError, NotFound
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
KIT = -1
"""In an entry's place for the shard: the folder is an audit kit."""
_UNDER_WAY = "exports under way"  # numbers of those whose temporary folder may be there


class Export(BaseModel):
    """One export as registered.

    Attributes:
        number: counted from 1.
        shard: whose adapter; `KIT` for an audit kit, which holds the documents of all.
        where: the folder, as an absolute path.
        when: RFC 3339, UTC.
        digest: SHA-256 (hex) of the plaintext of the checkpoint that was written out.
        inputs: what that checkpoint was trained on, as its slice identifies it (hex). A kit has no
            checkpoint: `checkpoint`, `digest` and `inputs` are empty.
        handles: the documents it had learned or holds, as keyed marks (hex).
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
    def of(self) -> int | None:
        """The shard whose adapter it is; None for an audit kit."""
        return None if self.shard == KIT else self.shard

    @property
    def label(self) -> str:
        """What a receipt calls it: no path, no name."""
        what = "audit kit" if self.of is None else f"shard {self.of}"
        return f"export {self.number} of {what}, {self.when[:10]}"


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
        return owing_to(handles, self.all())

    def add(self, export: Export, *, under_way: bool = False) -> None:
        """Register an export, durably; one `under_way` has a temporary folder until `done`."""
        ((slot, key),) = self._keyring.new_keys(1)
        with self._database.transaction() as connection:
            if under_way:
                self._set_under_way({*self._under_way(), export.number})
            connection.execute("INSERT INTO slots (slot) VALUES (?)", (slot,))
            connection.execute(
                "INSERT INTO exports VALUES (?, ?, ?)",
                (export.number, slot, _sealed(key, export)),
            )

    def done(self, number: int) -> None:
        """The temporary folder of an export is there no more."""
        if number in (left := self._under_way()):
            self._set_under_way(left - {number})

    def temporary(self, export: Export) -> Path:
        """The folder, beside its place, in which an export is written; no other workspace has it."""
        where, key = Path(export.where), self._keyring.secret("ids")
        mark = hmac.digest(key, f"export\0{export.number}\0{where}".encode(), "sha256").hex()
        return where.parent / f".{where.name}.export-{export.number}.{mark[:8]}"

    def sweep(self) -> None:
        """Remove the temporary folders that killed exports left; what cannot be is tried again later."""
        left = self._under_way()
        if not left:
            return
        for export in self.all():
            if export.number in left and _remove(self.temporary(export)):
                self.done(export.number)

    def _under_way(self) -> set[int]:
        return set(json.loads(self._database.value(_UNDER_WAY) or b"[]"))

    def _set_under_way(self, numbers: Collection[int]) -> None:
        self._database.set_value(_UNDER_WAY, json.dumps(sorted(numbers)).encode())

    def settle(self, where: Path) -> list[Export]:
        """Record that what was exported to a folder is destroyed.

        Raises:
            NotFound: nothing that is not settled was exported there.
            EnvironmentFailure: what a killed export left beside it cannot be removed.
        """
        place = str(where.absolute())
        found = [e for e in self.all() if e.where == place and e.gone is None]
        if not found:
            raise NotFound(f"No export to {place} is registered as still there.", "Check the path.")
        for export in found:
            beside = self.temporary(export)
            if os.path.lexists(beside) and not _remove(beside):
                raise EnvironmentFailure(
                    f"{beside}, which a killed export left, cannot be removed.",
                    "Remove it by hand.",
                )
            self.done(export.number)
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


def owing_to(handles: Collection[bytes], exports: Iterable[Export]) -> list[Export]:
    """Those of the exports that are not said to be gone and hold one of these documents."""
    wanted = {handle.hex() for handle in handles}
    return [e for e in exports if e.gone is None and not wanted.isdisjoint(e.handles)]


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
        register.add(export, under_way=True)
        beside = register.temporary(export)
        try:
            _remove(beside)  # left by a workspace that was since restored from a backup
            beside.mkdir(mode=0o700)
            config = host.config
            config.base_model_name_or_path = host.base.reference
            config.inference_mode = True
            config.save_pretrained(str(beside))
            safetensors.torch.save_file(
                {name: tensor.contiguous() for name, tensor in sorted(adapter.items())},
                beside / "adapter_model.safetensors",
                {"format": "pt"},
            )
            for file in beside.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            sync_directory(beside)
            if out.exists():
                out.rmdir()  # empty, as checked above
            beside.rename(out)
            sync_directory(out.parent)
        finally:
            if _remove(beside):
                register.done(export.number)
    return export


def _remove(folder: Path) -> bool:
    """Remove a folder, if it is there; whether it is gone, for good."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        sync_directory(folder.parent)
    except OSError:
        return False  # a disk that is not mounted comes back
    return not os.path.lexists(folder)


def now() -> str:
    """This moment as RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sealed(key: bytes, export: Export) -> bytes:
    return seal(key, export.model_dump_json().encode(), _aad(export.number))


def _aad(number: int) -> bytes:
    return b"export\0" + number.to_bytes(8, "big")
