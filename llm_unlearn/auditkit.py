"""What an auditor needs to rebuild what a receipt names, and the rebuilding.

A kit is a folder: `config.yaml`, `kit.json` (recipe, open generation, two secrets) and
`documents.jsonl`, the retained documents **in the clear**, each with the fate, rule and generation
it has. Whoever has it has the text, and can test guesses of ids and subjects with the secrets; hand
it to an auditor, and not with the receipts. It is registered, durably, before any text is written: a
takedown of a document that it holds lists it as owed, until `export --gone DIR`.

Guarantees: `rederive` builds store and adapters anew from a kit, in a temporary workspace that is
removed, or from the workspace itself, and compares their digests with those in the receipt. Nothing
else is believed of the kit: one with other documents, secrets or settings gives other digests.

Not guaranteed: that the retained documents are all that was ever trained on; the receipt's digests
say that what is there now comes from these and nothing else.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llm_unlearn.config import dump_config, load_config
from llm_unlearn.documents import Document
from llm_unlearn.errors import Damaged, InputError, NotFound
from llm_unlearn.exports import KIT, Export, Exports, now
from llm_unlearn.files import os_errors, write_atomic
from llm_unlearn.ingest import new_record
from llm_unlearn.opened import Models, Opened
from llm_unlearn.rederive import derive
from llm_unlearn.separation import Decision
from llm_unlearn.sisa.build import Progress
from llm_unlearn.sisa.recipe import Recipe
from llm_unlearn.takedown.receipt import Receipt
from llm_unlearn.workspace import Workspace
from llm_unlearn.writing import writing

Fate = Literal["store", "corpus"]
_BATCH = 64


class _Kit(BaseModel):
    """`kit.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    recipe: Recipe | None
    generation: int
    ids: str  # hex
    placement: str  # hex


class _Line(BaseModel):
    """One line of `documents.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    document: Document
    fate: Fate
    rule: str
    reason: str
    generation: int


@dataclass(frozen=True)
class Rederived:
    """One thing that a receipt names, and what the documents give.

    Attributes:
        what: "store", or "adapter of shard N".
        claimed: digest in the receipt.
        derived: the digest that was found for it, or the nearest to it where it was not.
    """

    what: str
    claimed: str
    derived: str | None

    @property
    def equal(self) -> bool:
        """Whether they are the same bytes."""
        return self.claimed == self.derived


def write_kit(opened: Opened, out: Path) -> int:
    """Write the kit of a workspace into a new folder and register it; how many documents it holds.

    Raises:
        InputError: the folder is there, or lies inside the workspace.
        WorkspaceLocked: another process is writing.
    """
    with writing(opened):
        return _write_kit(opened, out)


def _write_kit(opened: Opened, out: Path) -> int:
    out = out.absolute()
    if out.exists():
        raise InputError(f"{out} is there already.", "Choose a new folder.")
    if out.resolve().is_relative_to(opened.path.resolve()):
        raise InputError(
            f"{out} lies inside the workspace, which holds nothing in the clear.",
            "Choose a folder outside it.",
        )
    kit = _Kit(
        recipe=opened.saved_recipe(),
        generation=opened.ledger.generation,
        ids=opened.keyring.secret("ids").hex(),
        placement=opened.keyring.secret("placement").hex(),
    )
    records = [record for record in opened.vault.records() if record.fate != "refused"]
    lines = []
    for record in records:
        entry = opened.ledger.entry(record)
        fate: Fate = "store" if record.fate == "store" else "corpus"
        line = _Line(
            document=opened.document(record),
            fate=fate,
            rule=entry.rule,
            reason=entry.reason,
            generation=record.generation,
        )
        lines.append(line.model_dump_json())
    with os_errors(f"write {out}"):
        out.mkdir(mode=0o700, parents=True)
    register = Exports(opened.database, opened.keyring)
    register.add(
        Export(
            number=len(register.all()) + 1,
            shard=KIT,
            checkpoint="",
            where=str(out),
            when=now(),
            digest="",
            inputs="",
            handles=tuple(record.handle.hex() for record in records),
        )
    )
    write_atomic(out / "config.yaml", dump_config(opened.config).encode())
    write_atomic(out / "kit.json", kit.model_dump_json(indent=1).encode())
    write_atomic(out / "documents.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return len(records)


def rederive(
    receipt: Receipt,
    place: Path,
    *,
    keys: Path | None = None,
    models: Models | None = None,
    progress: Progress | None = None,
) -> tuple[Rederived, ...]:
    """Build what a receipt names from a kit or a workspace, and compare.

    Args:
        receipt: one that was verified.
        place: a kit's folder, or a workspace.
        keys: the workspace's keys, if not where it says.

    Raises:
        NotFound: there is neither.
        Damaged: the kit does not parse.
        RecipeMismatch: this machine computes other bits than the receipt's.
        InputError: the receipt was written under another recipe.
    """
    if (place / "workspace.db").is_file():
        with Workspace.open(place, keys=keys, models=models, readonly=True) as workspace:
            return _compare(receipt, workspace.opened, progress)
    if not (place / "kit.json").is_file():
        raise NotFound(
            f"{place} is neither a workspace nor a kit.",
            "`llm-unlearn audit WS --kit DIR` makes one.",
        )
    with (
        tempfile.TemporaryDirectory(prefix="llm-unlearn-audit-") as folder,
        _rebuilt(place, Path(folder), models) as workspace,
    ):
        return _compare(receipt, workspace.opened, progress)


def _rebuilt(place: Path, folder: Path, models: Models | None) -> Workspace:
    """A temporary workspace with the documents of a kit."""
    config = load_config(place / "config.yaml")
    try:
        kit = _Kit.model_validate_json((place / "kit.json").read_bytes())
        secrets = {"ids": bytes.fromhex(kit.ids), "placement": bytes.fromhex(kit.placement)}
    except (ValidationError, ValueError, OSError) as error:
        raise Damaged(f"{place / 'kit.json'} is not a kit.", "Ask the operator again.") from error
    workspace = Workspace.create(
        folder / "ws", keys=folder / "keys", config=config, secrets=secrets, models=models
    )
    opened = workspace.opened
    lines = _lines(place / "documents.jsonl")
    while batch := list(islice(lines, _BATCH)):
        opened.vault.add(
            [
                new_record(
                    line.document,
                    Decision(line.fate, line.rule, line.reason),
                    lambda: opened.store,
                    line.generation,
                )
                for line in batch
            ]
        )
    with opened.database.transaction():
        opened.database.set_value("generation", str(kit.generation).encode())
        if kit.recipe is not None:
            opened.database.set_value("recipe", kit.recipe.model_dump_json().encode())
            opened.database.set_value("recipe digest", kit.recipe.digest)
    return workspace


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield _Line.model_validate_json(line)
                except ValidationError as error:
                    raise Damaged(
                        f"{path} line {number} is not a document of a kit.",
                        "Ask the operator again.",
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} cannot be read.", "Ask the operator again.") from error


def _compare(receipt: Receipt, opened: Opened, progress: Progress | None) -> tuple[Rederived, ...]:
    state = receipt.state_after
    if state.adapters and state.recipe != opened.recipe_digest().hex():
        raise InputError(
            f"Receipt {receipt.number} was written under another recipe than these documents have.",
            "Give the kit of the workspace as it was then.",
        )
    store = hashlib.sha256(opened.store.canonical_bytes()).hexdigest()
    found = [Rederived("store", state.store, store)]
    shards = [adapter.shard for adapter in state.adapters]
    derived = derive(opened, shards, progress) if shards else {}
    for adapter in state.adapters:
        mine = [
            d
            for name, d in sorted(derived.items())
            if name.startswith(f"shard-{adapter.shard:02d}.")
        ]
        equal = adapter.digest if adapter.digest in mine else (mine[-1] if mine else None)
        found.append(Rederived(f"adapter of shard {adapter.shard}", adapter.digest, equal))
    return tuple(found)
