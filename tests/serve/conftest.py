"""Served workspaces: one that tests share, and copies of it for tests that remove something."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `served` is shared by the tests of this folder

from served import DOCUMENTS, Served, start, start_thread, tiny, workspace_at

from llm_unlearn.config import Config, dump_config, load_config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_references: dict[str, str]) -> Path:
    """A workspace to copy."""
    path = tmp_path_factory.mktemp("prepared") / "ws"
    workspace_at(path, tiny(tiny_references), DOCUMENTS)
    return path


@pytest.fixture(scope="session")
def fresh(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Served]]:
    """Start a server on a copy of the workspace; all are stopped at the end."""
    running: list[Served] = []

    def make(
        *,
        process: bool = False,
        webhooks: Sequence[str] = (),
        secret: str = "",
        guard: dict[str, object] | None = None,
        **serving: object,
    ) -> Served:
        folder = tmp_path_factory.mktemp("served")
        shutil.copytree(prepared, folder / "ws")
        shutil.copytree(prepared.parent / "ws-keys", folder / "ws-keys")
        with sqlite3.connect(folder / "ws" / "workspace.db") as database:
            home = str(folder / "ws-keys").encode()
            database.execute("UPDATE meta SET value = ? WHERE name = 'keys'", (home,))
        if serving or guard:
            config = load_config(folder / "ws" / "config.yaml").model_dump()
            config["serving"] |= serving
            config["guard"] |= guard or {}
            (folder / "ws" / "config.yaml").write_text(dump_config(Config.model_validate(config)))
        if process:
            running.append(start(folder / "ws"))
        else:
            running.append(start_thread(folder / "ws", webhooks, secret))
        return running[-1]

    yield make
    for served in running:
        served.close()


@pytest.fixture(scope="session")
def served(fresh: Callable[..., Served]) -> Served:
    """A server that several tests share; they remove nothing from it."""
    return fresh()
