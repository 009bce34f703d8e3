"""A trained workspace to be copied, taken down from by a process that dies, and what it must end in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small import SECRETS, answering_state, learned, stored, tiny_config

from llm_unlearn import Config, Workspace
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import survey
from llm_unlearn.opened import Models

GONE = "author-1"
DOCUMENTS = [learned(n, f"author-{n % 4}") for n in range(8)] + [stored(n, GONE) for n in range(2)]


@dataclass(frozen=True)
class Prepared:
    """A trained workspace to be copied, and what its takedown must end in."""

    path: Path
    keys: Path
    models: Models
    never_had: dict[str, bytes]

    def copy(self, to: Path) -> Workspace:
        """A copy with its own keys, open."""
        keys = to.with_name(to.name + "-keys")
        shutil.copytree(self.path, to)
        shutil.copytree(self.keys, keys)
        workspace = Workspace.open(to, keys=keys, models=self.models)
        workspace.opened.database.set_value("keys", str(keys).encode())
        return workspace


def prepare(references: dict[str, str], folders: pytest.TempPathFactory) -> Prepared:
    """Train one workspace with `GONE` and one that never had it."""
    config = tiny_config(references)
    models = Models(config)
    with _ready(folders.mktemp("never"), config, models, GONE) as never:
        state = answering_state(never)
    with _ready(folders.mktemp("ready"), config, models) as ready:
        return Prepared(ready.path, ready.opened.keyring.directory, models, state)


def _ready(folder: Path, config: Config, models: Models, gone: str = "") -> Workspace:
    workspace = Workspace.create(
        folder / "ws", keys=folder / "keys", config=config, secrets=SECRETS, models=models
    )
    workspace.ingest([d for d in DOCUMENTS if d.subject != gone])
    workspace.train()
    return workspace


def check_finished(workspace: Workspace, never_had: dict[str, bytes]) -> None:
    """Nothing pending, equal to never-had, one receipt, no key and no trace too many."""
    opened = workspace.opened
    mark = opened.vault.mark("subject", GONE)
    assert not opened.vault.records(subject=mark, states=("live", "fenced"))
    assert answering_state(workspace) == never_had
    assert workspace.status().takedowns[0][1] == "receipted"
    receipts = sorted((workspace.path / "receipts").glob("*.json"))
    assert len(receipts) == 1
    workspace.verify(receipts[0])
    listed = opened.checkpoints.listed()
    assert len(opened.keyring.live_slots()) == len(opened.vault.records()) + len(listed)
    assert not residue(workspace)


def residue(workspace: Workspace) -> list[str]:
    """What of the removed subject's text and vectors is in any file of workspace and keys."""
    texts = [document.content for document in DOCUMENTS if document.subject == GONE]
    needles = Needles.build(
        texts,
        vectors=np.concatenate([workspace.opened.embed(text) for text in texts]),
        background=[document.content for document in DOCUMENTS if document.subject != GONE],
    )
    found = survey([workspace.path, workspace.opened.keyring.directory], needles)
    assert found.files > 5
    return [str(finding) for finding in found.findings]
