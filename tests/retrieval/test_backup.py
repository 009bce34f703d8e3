"""Backups hold ciphertext only, and restoring one replays the deletions made since."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_unlearn.documents import Document
from llm_unlearn.errors import Damaged, InputError, KeysMissing
from llm_unlearn.retrieval import Store


def doc(name: str, text: str) -> Document:
    return Document(id=name, text=text)


def test_restore_replays_deletions(tmp_path: Path, tools: Any) -> None:
    """Also when the slot of a deleted document has been given to a new one since."""
    place = (tmp_path / "s", tmp_path / "k", tools.Embedder())
    with Store.create(*place, tools.settings) as store:
        store.add(doc(f"d{i}", f"apples number {i}") for i in range(6))
        store.backup(tmp_path / "backup")
        with pytest.raises(InputError):
            store.backup(tmp_path / "backup")
        assert b"apples" not in (tmp_path / "backup").read_bytes()
        store.delete(id="d1")
        store.delete(id="d2")
        store.update(doc("d3", "pears"))
        store.add([doc("late", "plums")])
        store.vault.keyring.rotate()
        taken = {record.slot for record in store.vault.records()}
    with pytest.raises(InputError):
        Store.restore(tmp_path / "backup", *place)
    shutil.rmtree(tmp_path / "s")
    with Store.restore(tmp_path / "backup", *place) as store:
        hits = store.search("apples", groups=["staff"], k=20)
        assert {hit.document for hit in hits} == {"d0", "d4", "d5"}
        store.verify()
        slots = {record.slot for record in store.vault.records()}
        assert slots < taken
        assert store.vault.keyring.live_slots() == slots
        assert store.settings == tools.settings
        store.add([doc("d1", "back again")])
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["lock", "workspace.db"]


def test_a_damaged_or_foreign_backup_is_refused(tmp_path: Path, tools: Any) -> None:
    place = (tmp_path / "s", tmp_path / "k", tools.Embedder())
    with Store.create(*place, tools.settings) as store:
        store.add(doc(f"d{i}", f"apples number {i}") for i in range(6))
        record = store.vault.records()[0]
        with store.vault.database.reading() as connection:
            query = "SELECT sealed FROM parts WHERE handle=? AND name='body'"
            sealed = connection.execute(query, (record.handle,)).fetchone()[0]
        store.backup(tmp_path / "backup")
    shutil.rmtree(tmp_path / "s")
    whole = (tmp_path / "backup").read_bytes()
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    assert whole.count(sealed) == 1
    for broken in (whole.replace(sealed, flipped), whole[:-5000], whole[:100]):
        (tmp_path / "backup").write_bytes(broken)
        with pytest.raises(Damaged):
            Store.restore(tmp_path / "backup", *place)
        assert not (tmp_path / "s" / "workspace.db").exists()
    (tmp_path / "backup").write_bytes(whole)
    with Store.create(tmp_path / "s2", tmp_path / "k2", tools.Embedder(), tools.settings):
        pass
    with pytest.raises(KeysMissing):
        Store.restore(tmp_path / "backup", tmp_path / "s", tmp_path / "k2", tools.Embedder())
    Store.restore(tmp_path / "backup", *place).close()
