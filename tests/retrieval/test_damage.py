"""Flipped bits and cut files: each is noticed or harmless, never a wrong answer."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_unlearn.errors import UnlearnError
from llm_unlearn.retrieval import Store

Answers = list[Any]


def ask(store: Store) -> Answers:
    hits: Answers = [store.search("record", groups=["staff"], k=200)]
    for i in range(12):
        subject = store.vault.mark("subject", f"s{i}")
        hits.append([r.handle for r in store.vault.records(subject=subject)])
    return hits


def flip(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    return data


def cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


@pytest.mark.parametrize("left_open", [False, True])
def test_damage_is_noticed_or_harmless(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_open: bool
) -> None:
    """Open as a reader and as a writer, ask, and compare with the answers before."""
    whole = tmp_path / "whole"
    store = tools.open_store(whole, create=True)
    store.add(tools.document(i, subject=f"s{i % 12}") for i in range(60))
    store.delete(subject="s7")
    right = [ask(store)]
    if left_open:
        # A kill right before the log is moved into the database, which ends every acknowledged write:
        # without the log, what was not acknowledged is lost, all of it.
        monkeypatch.setattr(store.vault.database, "erase_journal", lambda: True)
        store.add(tools.document(i, subject="s1") for i in range(60, 70))
        right.append(ask(store))
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        tools.close_store(store)
        shutil.rmtree(whole)
        copy.rename(whole)
    else:
        tools.close_store(store)
    files = sorted(
        p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and p.stat().st_size
    )
    assert {path.suffix for path in files} >= {".db", ".json", ".key", ""}
    assert left_open == any(path.name.endswith("-wal") for path in files)
    rng = random.Random(7)
    done, noticed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    kinds: dict[str, Callable[[bytearray, random.Random], bytearray]] = {"flip": flip, "cut": cut}
    turns = tools.soak(60, times=3)
    for turn in range(turns):
        # Each round does one thing to every file, so that every file is both cut and flipped.
        kind = "cut" if turn // len(files) % 3 == 0 else "flip"
        path = files[turn % len(files)]
        done[kind, path.name] += 1
        broken = tmp_path / "broken"
        shutil.copytree(whole, broken)
        (broken / path).write_bytes(kinds[kind](bytearray((whole / path).read_bytes()), rng))
        try:
            for readonly in (True, False):
                vault = tools.open_vault(broken, readonly=readonly)
                try:
                    if not readonly:
                        vault.sweep()
                    assert ask(Store(vault, tools.Embedder(), tools.settings)) in right, path
                finally:
                    tools.close_vault(vault)
        except UnlearnError:
            noticed[kind, path.name] += 1
        shutil.rmtree(broken)
    assert {name for _, name in done} == {path.name for path in files}
    assert min(done["cut", path.name] for path in files) > 0
    # A flip often hits a free page, a free slot or white space, and a log may be lost whole. But not
    # noticing these would mean that nobody looks:
    for name in ("keyring.json", "writer", "workspace.db"):
        assert noticed["cut", name] > 0.7 * done["cut", name], name
    assert noticed["flip", "keyring.json"] > 0.7 * done["flip", "keyring.json"]
    assert noticed["flip", "workspace.db"] > 0.2 * done["flip", "workspace.db"]
