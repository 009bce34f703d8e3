"""A maker of small workspaces that share models and secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small import SECRETS, Maker, tiny_config

from llm_unlearn import Workspace
from llm_unlearn.opened import Models


@pytest.fixture
def make(tmp_path: Path, tiny_references: dict[str, str]) -> Iterator[Maker]:
    """Make workspaces with the same secrets, so that their states can be compared."""
    made: list[Workspace] = []
    shared: dict[str, Models] = {}

    def maker(name: str = "ws", kind: str = "llama", **training: object) -> Workspace:
        config = tiny_config(tiny_references, kind, **training)
        models = shared.setdefault(config.model_dump_json(), Models(config))
        workspace = Workspace.create(
            tmp_path / name,
            keys=tmp_path / f"{name}-keys",
            config=config,
            secrets=SECRETS,
            models=models,
        )
        made.append(workspace)
        return workspace

    yield maker
    for workspace in made:
        workspace.close()
