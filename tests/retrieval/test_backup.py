"""Backups hold ciphertext only, and restoring one replays the deletions made since."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_unlearn.documents import Document
from llm_unlearn.errors import (
    Damaged,
    InputError,
    KeysMissing,
    NotFound,
    WorkspaceMissing,
    WorkspaceVersion,
)
from llm_unlearn.retrieval import Store, bars, claim
from llm_unlearn.retrieval.database import Database


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


def test_restore_keeps_fences_and_holds_of_the_store_in_use(tmp_path: Path, tools: Any) -> None:
    """Set since, ended since, and a bar; without the store in use, all is as it was."""
    place = (tmp_path / "s", tmp_path / "k", tools.Embedder())
    with Store.create(*place, tools.settings) as store:
        store.add(doc(f"d{i}", f"apples number {i}") for i in range(6))
        store.hold(id="d4")
        store.backup(tmp_path / "backup")
        store.hold(id="d1")
        bars.add(store.vault.database, [store.vault.mark("id", "d1")], b"a" * 16)
        store.hold(id="d2")
        store.release(id="d4")
        store.delete(id="d5")
        store.fence(id="d3")
    (tmp_path / "s" / "workspace.db").rename(tmp_path / "moved")
    keys = shutil.copytree(tmp_path / "k", tmp_path / "k2")
    with Store.restore(tmp_path / "backup", tmp_path / "s2", keys, place[2]) as store:
        assert store.held() == ["d4"]
        hits = store.search("apples", groups=["staff"], k=20)
        assert {hit.document for hit in hits} == {"d0", "d1", "d2", "d3"}
    with Store.restore(tmp_path / "backup", *place, current=tmp_path / "moved") as store:
        assert store.held() == ["d1", "d2"]
        hits = store.search("apples", groups=["staff"], k=20)
        assert {hit.document for hit in hits} == {"d0", "d4"}
        assert store.release(id="d1") == 0  # it is barred
        assert store.release(id="d2") == 1
        store.verify()


def test_what_is_not_there_is_named(tmp_path: Path, tools: Any) -> None:
    place = (tmp_path / "s", tmp_path / "k", tools.Embedder())
    with Store.create(*place, tools.settings) as store:
        store.backup(tmp_path / "backup")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(NotFound, match="no backup at"):
        Store.restore(tmp_path / "none", *place)
    with pytest.raises(WorkspaceMissing, match="none"):
        Store.restore(tmp_path / "backup", *place, current=tmp_path / "none")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["lock"]


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


def test_an_older_copy_cannot_write_with_the_keys_in_use(tmp_path: Path, tools: Any) -> None:
    """It would destroy the keys of what came later; reading it is harmless."""
    place = (tmp_path / "s", tmp_path / "k", tools.Embedder())
    with Store.create(*place, tools.settings) as store:
        store.add([doc("early", "apples")])
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    with Store.open(*place, write=True) as store:
        store.add([doc("late", "plums")])
    with pytest.raises(WorkspaceVersion, match="older copy"):
        Store.open(tmp_path / "old", *place[1:], write=True)
    with Store.open(tmp_path / "old", *place[1:]) as store:
        assert [hit.document for hit in store.search("apples", groups=["staff"])] == ["early"]
    with Store.open(*place, write=True) as store:
        store.verify()
        assert {hit.document for hit in store.search("plums", groups=["staff"])} == {
            "early",
            "late",
        }


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_writer_killed_while_it_marks_can_write_again(
    tmp_path: Path, tools: Any, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (tmp_path / "s", tmp_path / "k", tools.Embedder())
    with Store.create(*place, tools.settings) as store:
        store.add([doc("a", "apples")])
    calls = []

    def stopping(original: Any) -> Any:
        def call(*arguments: Any) -> None:
            if arguments[0] == "writer" or "writer" in str(arguments[0]):
                if len(calls) == step:
                    raise KeyboardInterrupt
                calls.append(arguments)
            original(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(claim, "write_atomic", stopping(claim.write_atomic))
        patch.setattr(Database, "set_value", _method(stopping, Database.set_value))
        with pytest.raises(KeyboardInterrupt):
            Store.open(*place, write=True)
    for _ in range(2):
        with Store.open(*place, write=True) as store:
            store.verify()


def _method(stopping: Any, original: Any) -> Any:
    def set_value(self: Database, *arguments: Any) -> None:
        stopping(lambda *rest: original(self, *rest))(*arguments)

    return set_value
