"""Records: adding, replacing, states, deletion, sweeping, authentication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_unlearn.errors import Damaged, InputError, KeyDestroyed, KeysMissing
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.vault import NewRecord, Vault


def new(name: str, subject: str = "s", text: str = "text", **parts: bytes) -> NewRecord:
    packed = {"meta": b"meta of " + name.encode(), **parts}
    return NewRecord(name, subject, "src", text, "store", 3, packed)


def test_what_is_added_is_found_and_read(vault: Vault) -> None:
    handles = vault.add([new("a", "s1"), new("b", "s2", body=b"body")])
    assert handles == [vault.mark("id", "a"), vault.mark("id", "b")]
    assert [r.handle for r in vault.records()] == sorted(handles)
    record = vault.find(handles[1])
    assert record is not None
    assert (record.subject, record.content) == (
        vault.mark("subject", "s2"),
        vault.mark("content", "text"),
    )
    assert (record.fate, record.state, record.generation) == ("store", "live", 3)
    assert vault.read(record, "meta") == b"meta of b"
    assert vault.read(record, "body") == b"body"
    assert vault.part_names(record) == ["body", "meta"]
    assert vault.records(subject=vault.mark("subject", "s2")) == [record]
    assert vault.records(content=vault.mark("content", "text"), fate="corpus") == []
    with pytest.raises(Damaged, match="nonsense"):
        vault.read(record, "nonsense")


def test_an_id_is_taken_once(vault: Vault) -> None:
    vault.add([new("a")])
    keys = vault.keyring.live_slots()
    for batch in ([new("b"), new("a")], [new("c"), new("c")]):
        with pytest.raises(InputError, match=batch[-1].id):
            vault.add(batch)
    with pytest.raises(InputError, match="limbo"):
        vault.add([new("d")], state="limbo")
    assert len(vault.records()) == 1
    assert vault.keyring.live_slots() == keys


def test_replace_destroys_the_old_key_after_the_commit(vault: Vault) -> None:
    vault.add([new("a")])
    (old,) = vault.records()

    def fail_after_replacing() -> None:
        with vault.database.transaction():
            vault.replace([new("a", text="other")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_replacing()
    assert vault.records() == [old]
    assert vault.read(old, "meta") == b"meta of a"
    vault.replace([new("a", meta=b"new")])
    (record,) = vault.records()
    assert vault.read(record, "meta") == b"new"
    with pytest.raises(KeyDestroyed):
        vault.keyring.key(old.slot)
    vault.sweep()
    assert vault.keyring.live_slots() == {record.slot}


def test_states(vault: Vault) -> None:
    handles = vault.add([new("a"), new("b")], state="staged")
    assert vault.records() == []
    assert vault.promote_staged() == 2
    version = vault.version()
    vault.set_state([handles[0], bytes(16)], "fenced")
    assert [r.handle for r in vault.records(states=("fenced",))] == handles[:1]
    assert vault.version() > version
    assert set(vault.versions("store")) == {handles[1]}
    vault.verify_rows()


def test_delete_destroys_keys_before_rows(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = vault.add([new("a"), new("b")])
    (record,) = [r for r in vault.records() if r.handle == handles[0]]

    def stop(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(vault, "_remove", stop)
        with pytest.raises(ZeroDivisionError):
            vault.delete([handles[0]])
    assert vault.find(handles[0]) == record
    with pytest.raises(KeyDestroyed):
        vault.read(record, "meta")
    assert vault.read_live([record], "meta") == [None]
    vault.sweep()
    assert vault.find(handles[0]) is None
    vault.delete([handles[0]])
    assert [r.handle for r in vault.records()] == handles[1:]
    vault.verify_rows()


def test_sweep_clears_staged_rows_and_orphan_keys(vault: Vault) -> None:
    vault.add([new("a")])
    vault.add([new("b")], state="staged")
    vault.keyring.new_keys(3)
    vault.sweep()
    (record,) = vault.records(states=("live", "staged"))
    assert vault.keyring.live_slots() == {record.slot}
    with vault.database.reading() as connection:
        assert connection.execute("SELECT slot FROM slots").fetchall() == [(record.slot,)]


@pytest.mark.parametrize("killed_again", [False, True])
def test_new_keys_pass_over_what_a_killed_deletion_left(vault: Vault, killed_again: bool) -> None:
    """Three keys are destroyed, their rows stand: seen by a writer that opens, and by the same one."""
    vault.add([new(f"d{i}") for i in range(10)])
    dead = vault.records()[:3]
    vault.keyring.destroy([record.slot for record in dead])
    for writer in (vault, Vault(vault.database, Keyring.open(vault.keyring.directory))):
        if writer is not vault:
            writer.sweep(quick=True)
        if killed_again:
            writer.keyring.new_keys(1200)  # and killed before a row was written
        else:
            writer.add([new(f"in {id(writer)}")])
        assert writer.read_live(dead, "meta") == [None] * 3
    writer.sweep()
    assert writer.find_many([record.handle for record in dead]) == {}
    slots = {record.slot for record in writer.records()}
    assert writer.keyring.live_slots() == slots
    assert len(slots) == (7 if killed_again else 9)
    zero = len(writer.keyring.zero_slots())
    taken = {slot for slot, _ in writer.keyring.new_keys(zero)}
    assert {record.slot for record in dead} <= taken  # with their rows gone


def test_slots_of_rows_deleted_in_a_transaction_come_back_with_its_commit(vault: Vault) -> None:
    (handle,) = vault.add([new("a")])
    (record,) = vault.records()
    capacity = vault.keyring.capacity

    def fail() -> None:
        with vault.database.transaction():
            vault.delete([handle])
            vault.add([new(f"d{i}") for i in range(capacity - 1)])  # all the rest of the slots
            vault.add([new("last")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert vault.read_live([record], "meta") == [None]
    vault.sweep()
    assert vault.records() == []
    assert record.slot in vault.keyring.zero_slots()


@pytest.mark.parametrize("through", [False, True])
def test_an_interrupt_at_the_commit_destroys_no_key_that_is_needed(
    vault: Vault, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an update: before the commit the old document stays, after it the new one is there."""
    vault.add([new("a")])
    changed = vault.database.change()
    connection = vault.database._connection

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

        def execute(self, query: str, *values: Any) -> Any:
            if query == "COMMIT" and not through:
                raise KeyboardInterrupt
            found = connection.execute(query, *values)
            if query == "COMMIT":
                raise KeyboardInterrupt
            return found

    with monkeypatch.context() as patch:
        patch.setattr(vault.database, "_connection", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            vault.replace([new("a", meta=b"later")])
    (record,) = vault.records()
    assert vault.read(record, "meta") == (b"later" if through else b"meta of a")
    assert vault.keyring.live_slots() == {record.slot}
    assert vault.database.change() != changed


def test_sweep_spares_keys_of_other_parties(vault: Vault) -> None:
    ((slot, key),) = vault.keyring.new_keys(1)
    with vault.database.transaction() as connection:
        connection.execute("INSERT INTO slots VALUES (?)", (slot,))
    vault.sweep()
    assert vault.keyring.key(slot) == key


def test_cut_key_file_is_not_taken_for_deletions(vault: Vault) -> None:
    vault.add([new(f"d{i}") for i in range(2000)])
    path = vault.keyring.directory / "slots-1"
    vault.keyring.close()
    with path.open("r+b") as file:
        file.truncate(64 * 1024)
    with pytest.raises(Damaged):
        vault.sweep()
    assert len(vault.records()) == 2000


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE documents SET state='fenced'",
        "UPDATE documents SET subject=zeroblob(16)",
        "UPDATE documents SET generation=generation+1",
        "UPDATE documents SET generation='x'",
        "DELETE FROM documents WHERE handle=(SELECT max(handle) FROM documents)",
        "DELETE FROM meta WHERE name='vault'",
        "UPDATE meta SET value=zeroblob(48) WHERE name='vault'",
    ],
)
def test_changed_or_lost_rows_are_noticed(vault: Vault, tamper: str) -> None:
    vault.add([new("a"), new("b")])
    with vault.database.transaction() as connection:
        connection.execute("PRAGMA defer_foreign_keys=ON")
        connection.execute(tamper)
        connection.execute("DELETE FROM parts WHERE handle NOT IN (SELECT handle FROM documents)")
    with pytest.raises(Damaged):
        vault.verify_rows()


def test_a_byte_moved_from_one_mark_to_the_next_is_noticed(vault: Vault) -> None:
    """The code of a row is made over the marks joined together, which stay the same."""
    vault.add([new("a")])
    (record,) = vault.records()
    moved = (record.subject + record.source[:1], record.source[1:])
    with vault.database.transaction() as connection:
        connection.execute("UPDATE documents SET subject=?, source=?", moved)
    with pytest.raises(Damaged):
        vault.find(record.handle)


def test_swapped_parts_are_noticed(vault: Vault) -> None:
    """Two records of one subject: handle and part name are bound to the ciphertext."""
    vault.add([new("a", body=b"1"), new("b", body=b"2")])
    with vault.database.transaction() as connection:
        rows = connection.execute("SELECT rowid, sealed FROM parts WHERE name='body'").fetchall()
        for (rowid, _), (_, sealed) in zip(rows, reversed(rows), strict=True):
            connection.execute("UPDATE parts SET sealed=? WHERE rowid=?", (sealed, rowid))
    for record in vault.records():
        with pytest.raises(Damaged):
            vault.read(record, "body")


def test_keys_of_another_workspace_are_refused(tmp_path: Path, tools: Any) -> None:
    one, two = (
        tools.open_vault(tmp_path / "1", create=True),
        tools.open_vault(tmp_path / "2", create=True),
    )
    with pytest.raises(KeysMissing):
        Vault(one.database, two.keyring)
    tools.close_vault(one)
    tools.close_vault(two)
