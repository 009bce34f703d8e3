"""Workspaces that cannot be used: one line, the exit code, and every byte as it was."""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_HOLD = """
import sys
from pathlib import Path
from llm_unlearn.retrieval.lock import WriterLock
with WriterLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def writes(place: Any, source: Path) -> list[tuple[object, ...]]:
    """The commands that write, each with what it needs."""
    return [
        ("ingest", *place.arguments, source),
        ("train", *place.arguments),
        ("takedown", *place.arguments, "--subject", "quill", "--yes"),
        ("resume", *place.arguments),
    ]


def reads(place: Any) -> list[tuple[object, ...]]:
    """Commands that only read, and need no model."""
    return [
        ("status", *place.arguments),
        ("where", *place.arguments, "quill-0"),
        ("takedown", *place.arguments, "--subject", "quill", "--dry-run"),
    ]


@pytest.fixture
def source(tmp_path: Path, documents: Any) -> Path:
    """One new document."""
    found: Path = documents(tmp_path / "new.jsonl", [{"id": "new", "text": "A new text."}])
    return found


def test_no_workspace_there(cli: Any, place: Any, source: Path) -> None:
    shutil.rmtree(place.workspace)
    ask = ("ask", *place.arguments, "Who?", "-g", "staff")
    for command in [writes(place, source)[0], reads(place)[0], ask]:
        cli(*command).refused(5, str(place.workspace), "llm-unlearn init")
    assert not place.workspace.exists()


def test_a_workspace_from_a_newer_version(cli: Any, place: Any, source: Path) -> None:
    connection = sqlite3.connect(place.workspace / "workspace.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    before = place.files()
    for command in [writes(place, source)[0], reads(place)[0]]:
        cli(*command).refused(5, "workspace.db", "99", "Upgrade")
    assert place.files() == before


def test_a_config_from_a_newer_version(cli: Any, place: Any) -> None:
    config = place.workspace / "config.yaml"
    config.write_text(config.read_text().replace("version: 1", "version: 2"))
    before = place.files()
    cli("status", *place.arguments).refused(3, "config.yaml", "version")
    assert place.files() == before


def test_a_workspace_locked_by_another_process(cli: Any, place: Any, source: Path) -> None:
    """Writers are refused and told by whom; readers go on."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, place.workspace / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cli.folder,
        env=environment,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = place.state()
    try:
        for command in writes(place, source):
            cli(*command).refused(5, str(place.workspace), str(holder.pid))
        assert cli(*reads(place)[0]).code == 0
    finally:
        holder.communicate()
    assert place.state() == before
    assert cli("resume", *place.arguments).code == 0  # the lock died with its holder


def obey_modes() -> None:
    """Drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH for good: root then obeys file modes too."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):
            if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "prctl")


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Nothing in a directory can be written by who obeys modes."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_a_workspace_that_cannot_be_written(cli: Any, place: Any, source: Path) -> None:
    before = place.files()
    with unwritable(place.workspace):
        for command in writes(place, source):
            cli(*command, preexec_fn=obey_modes).refused(
                5, str(place.workspace), "cannot be written", "Give this user write access"
            )
        for command in reads(place)[:2]:
            done = cli(*command, preexec_fn=obey_modes)
            assert done.code == 0, done
    assert place.files() == before


def test_a_workspace_made_where_nothing_can_be_written(cli: Any, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with unwritable(shelf):
        done = cli("init", shelf / "ws", "--keys", "keys", preexec_fn=obey_modes)
        done.refused(5, str(shelf / "ws"))
        done = cli("init", "ws", "--keys", shelf / "keys", preexec_fn=obey_modes)
        done.refused(5, str(shelf / "keys"))
    assert not list(shelf.iterdir())
    assert not (tmp_path / "ws").exists()


def spoil(path: Path, at: int) -> None:
    """Change one byte; `at` counts from the end when negative."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_refused_and_repaired(cli: Any, place: Any, corpus: Any) -> None:
    """Repair builds it from the documents: the same bytes, as plaintext."""
    sound = place.state()
    for path in place.workspace.glob("adapters/*"):
        spoil(path, path.stat().st_size // 2)
    before = place.files()
    question = next(d["text"] for d in corpus if d["id"] == "morrow-0")  # cosine 1: an adapter
    done = cli("ask", *place.arguments, question, "-g", "staff")
    done.refused(6, "Checkpoint shard-", "damaged", "train --repair")
    assert place.files() == before
    done = cli("train", *place.arguments, "--repair", "--json")
    assert done.code == 0, done
    assert len(done.json["built"]) == len(done.json["disposed"]) == len(sound["checkpoints"])
    assert place.state() == sound


@pytest.mark.parametrize("damage", ["header", "middle", "everywhere", "cut", "empty", "prose"])
def test_a_damaged_ledger(cli: Any, place: Any, source: Path, damage: str) -> None:
    path = place.workspace / "workspace.db"
    data = path.read_bytes()
    page = 4096
    spoiled = {
        "header": b"\xff" * 100 + data[100:],
        "middle": data[: 2 * page] + b"\xa5" * page + data[3 * page :],
        "everywhere": data[:page] + b"\xa5" * (len(data) - page),
        "cut": data[: len(data) // 2],
        "empty": b"",
        "prose": b"This is not a database. " * 400,
    }[damage]
    path.write_bytes(spoiled)
    before = place.files()
    cli(*writes(place, source)[0]).refused(6, "workspace.db", "Restore")
    assert place.files() == before


def test_a_damaged_key_file(cli: Any, place: Any, source: Path) -> None:
    """Of the header, the root key, and each data key."""
    for name, words in (("keyring.json", ["keyring.json"]), ("root.key", [str(place.keys)])):
        sound = (place.keys / name).read_bytes()
        spoil(place.keys / name, len(sound) // 2)
        before = place.files()
        for command in [writes(place, source)[0], reads(place)[0]]:
            cli(*command).refused(6, *words)
        assert place.files() == before
        (place.keys / name).write_bytes(sound)
    (slots,) = place.keys.glob("slots-*")
    data = bytearray(slots.read_bytes())
    for start in range(0, len(data), 64):
        if any(data[start : start + 64]):
            data[start + 20] ^= 0xFF
    slots.write_bytes(data)
    before = place.files()
    cli("where", *place.arguments, "quill-0").refused(6, "key slot")
    assert place.files() == before
    cli(*writes(place, source)[2]).refused(6, "key slot")
    # A writer leaves its mark in the database and beside the keys, whatever comes of it.
    marked = {str(place.keys / "writer"), str(place.workspace / "workspace.db")}
    after = place.files()
    assert {k: v for k, v in after.items() if k not in marked} == {
        k: v for k, v in before.items() if k not in marked
    }


def test_keys_that_are_missing_or_another_workspace_s(
    cli: Any, place: Any, prepared: Any, source: Path, tmp_path: Path
) -> None:
    before = place.files()
    run = ("status", place.workspace, "--keys")
    cli(*run, tmp_path / "none").refused(6, str(tmp_path / "none"))
    assert cli("init", "other", "--keys", "other-keys").code == 0
    cli(*run, tmp_path / "other-keys").refused(6, "other-keys")
    shutil.move(next(place.keys.glob("slots-*")), tmp_path / "slots")
    cli("where", *place.arguments, "quill-0").refused(6, "slots-")
    shutil.move(tmp_path / "slots", place.keys / "slots-1")
    assert place.files() == before


def test_a_model_that_does_not_exist(cli: Any, untrained: Any) -> None:
    config = untrained.workspace / "config.yaml"
    lines = [
        "model: /nowhere/llama" if line.startswith("model:") else line
        for line in config.read_text().splitlines()
    ]
    config.write_text("\n".join(lines))
    before = untrained.state()
    cli("train", *untrained.arguments).refused(9, "/nowhere/llama", "does not exist")
    assert untrained.state() == before
