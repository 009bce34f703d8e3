"""Slots, secrets, destruction in place, rotation."""

from __future__ import annotations

import base64
import os
import shutil
import stat
from pathlib import Path

import pytest

from llm_unlearn.errors import Damaged, InputError, KeyDestroyed, KeysMissing, NotFound
from llm_unlearn.retrieval import keyheader
from llm_unlearn.retrieval.keyring import SECRETS, SLOT_BYTES, Keyring
from llm_unlearn.retrieval.roots import EnvironmentRoot, FileRoot


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "keys")


def test_reopened_keyring_gives_the_same_keys(ring: Keyring) -> None:
    pairs = ring.new_keys(5)
    again = Keyring.open(ring.directory)
    assert again.identity == ring.identity
    assert [again.key(slot) for slot, _ in pairs] == [key for _, key in pairs]
    assert {again.secret(name) for name in SECRETS} == {ring.secret(name) for name in SECRETS}
    assert len({key for _, key in pairs}) == 5
    assert again.live_slots() == {slot for slot, _ in pairs}


def test_modes_are_tight(ring: Keyring) -> None:
    assert stat.S_IMODE(ring.directory.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in ring.directory.iterdir())


def test_destroyed_key_is_zero_in_place(ring: Keyring) -> None:
    pairs = ring.new_keys(3)
    path = ring.directory / "slots-1"
    before, inode = path.read_bytes(), path.stat().st_ino
    slot = pairs[1][0]
    ring.destroy([slot])
    ring.destroy([slot, 10**9])
    after = path.read_bytes()
    start = slot * SLOT_BYTES
    assert any(before[start : start + SLOT_BYTES])
    assert after == before[:start] + bytes(SLOT_BYTES) + before[start + SLOT_BYTES :]
    assert path.stat().st_ino == inode
    with pytest.raises(KeyDestroyed):
        ring.key(slot)
    assert ring.keys([pairs[0][0], slot]) == [pairs[0][1], None]


def test_destruction_by_another_object_is_seen_at_once(ring: Keyring) -> None:
    (slot, key), *_ = ring.new_keys(1)
    other = Keyring.open(ring.directory)
    assert other.key(slot) == key
    ring.destroy([slot])
    with pytest.raises(KeyDestroyed):
        other.key(slot)


def test_slots_are_used_again_with_fresh_keys(ring: Keyring) -> None:
    first = dict(ring.new_keys(3000))  # more than one extent
    ring.destroy(first)
    assert not set(first) & {slot for slot, _ in ring.new_keys(50)}  # rows may still name them
    ring.free(first)
    second = dict(ring.new_keys(3000))
    assert ring.capacity < 6000
    assert not set(first.values()) & set(second.values())


def test_zero_slots_that_rows_name_are_passed_over(ring: Keyring) -> None:
    slots = [slot for slot, _ in ring.new_keys(10)]
    ring.destroy(slots[:3])
    again = Keyring.open(ring.directory)
    again.keep(slots[:3])
    assert not {slot for slot, _ in again.new_keys(1500)} & set(slots)
    again.rotate()
    again.free(slots[:2])
    assert set(slots[:2]) <= {slot for slot, _ in again.new_keys(2000)}
    assert again.keys([slots[2]]) == [None]


def test_no_slot_is_given_twice(ring: Keyring) -> None:
    slots = [slot for _ in range(5) for slot, _ in ring.new_keys(700)]
    again = [slot for slot, _ in Keyring.open(ring.directory).new_keys(100)]
    assert len(set(slots + again)) == 3600


def test_given_secrets_are_kept_and_checked(tmp_path: Path) -> None:
    ring = Keyring.create(tmp_path / "a", secrets={"placement": b"p" * 32})
    assert Keyring.open(tmp_path / "a").secret("placement") == b"p" * 32
    assert ring.secret("ids") != b"p" * 32
    with pytest.raises(NotFound):
        ring.secret("nonsense")
    for wrong in ({"placement": b"short"}, {"nonsense": b"x" * 32}):
        with pytest.raises(InputError):
            Keyring.create(tmp_path / "b", secrets=wrong)
    with pytest.raises(InputError):
        Keyring.create(tmp_path / "a")


def test_missing_or_damaged_files_are_named(ring: Keyring, tmp_path: Path) -> None:
    with pytest.raises(KeysMissing):
        Keyring.open(tmp_path / "nowhere")
    for name, error in (
        ("keyring.json", KeysMissing),
        ("root.key", KeysMissing),
        ("slots-1", KeysMissing),
    ):
        copy = tmp_path / f"without-{name}"
        shutil.copytree(ring.directory, copy)
        (copy / name).unlink()
        with pytest.raises(error, match=name if name != "keyring.json" else "keyring"):
            Keyring.open(copy).key(0)
    (ring.directory / "slots-1").write_bytes(b"x" * 70)
    with pytest.raises(Damaged, match="cut"):
        Keyring.open(ring.directory).key(0)


def test_slot_of_another_place_is_refused(ring: Keyring) -> None:
    """A wrapped key moved to another slot fails: the slot number is authenticated."""
    (one, _), (two, _) = ring.new_keys(2)
    path = ring.directory / "slots-1"
    data = bytearray(path.read_bytes())
    a, b = one * SLOT_BYTES, two * SLOT_BYTES
    data[a : a + SLOT_BYTES], data[b : b + SLOT_BYTES] = (
        data[b : b + SLOT_BYTES],
        data[a : a + SLOT_BYTES],
    )
    path.write_bytes(bytes(data))
    with pytest.raises(Damaged):
        Keyring.open(ring.directory).key(one)


class TestRotation:
    def test_keeps_keys_and_kills_old_copies(self, ring: Keyring, tmp_path: Path) -> None:
        pairs = ring.new_keys(400)
        ring.destroy([pairs[7][0]])
        kept = [pair for pair in pairs if pair != pairs[7]]
        reader = Keyring.open(ring.directory)
        reader.key(kept[0][0])
        shutil.copytree(ring.directory, tmp_path / "old")
        ring.rotate()
        for keyring in (ring, reader, Keyring.open(ring.directory)):
            assert keyring.keys([slot for slot, _ in kept]) == [key for _, key in kept]
            assert keyring.secret("ids") == ring.secret("ids")
            assert keyring.keys([pairs[7][0]]) == [None]
        assert {path.name for path in ring.directory.iterdir()} == {
            "keyring.json",
            "root.key",
            "slots-2",
        }
        # An old copy of everything but the root key is useless now.
        shutil.copy(ring.directory / "root.key", tmp_path / "old" / "root.key")
        with pytest.raises(KeysMissing):
            Keyring.open(tmp_path / "old")
        assert ring.stays_readable() == ""

    def test_old_root_key_is_gone_from_its_file(self, ring: Keyring) -> None:
        before = (ring.directory / "root.key").read_bytes()[64:128]
        ring.rotate()
        after = (ring.directory / "root.key").read_bytes()
        assert before[16:48] not in after
        assert any(after[64:128])
        assert not any(after[128:])

    @pytest.mark.parametrize("step", ["renew", "write", "keep_only"])
    def test_killed_rotation_is_old_or_new(
        self, ring: Keyring, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped before each step that changes something, the keyring still gives its keys."""
        pairs = ring.new_keys(10)

        class Killed(BaseException):
            pass

        def stop(*_: object) -> None:
            raise Killed

        calls = 0
        keep_only = FileRoot.keep_only

        def stop_second(self: FileRoot, wrapped: bytes) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise Killed
            keep_only(self, wrapped)

        with monkeypatch.context() as patch:
            if step == "renew":
                patch.setattr(FileRoot, "renew", stop)
            elif step == "write":
                patch.setattr(keyheader, "write", stop)
            else:
                patch.setattr(FileRoot, "keep_only", stop_second)
            with pytest.raises(Killed):
                ring.rotate()
        again = Keyring.open(ring.directory)
        assert again.keys([slot for slot, _ in pairs]) == [key for _, key in pairs]
        again.recover()
        assert len(list(ring.directory.iterdir())) == 3
        again.rotate()
        assert again.keys([slot for slot, _ in pairs]) == [key for _, key in pairs]
        assert len(list(ring.directory.iterdir())) == 3

    def test_unrotatable_root_says_what_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STORE_ROOT", base64.b64encode(os.urandom(32)).decode())
        ring = Keyring.create(tmp_path / "keys", EnvironmentRoot("STORE_ROOT"))
        ((slot, key),) = ring.new_keys(1)
        ring.rotate()
        assert Keyring.open(tmp_path / "keys").key(slot) == key
        assert "STORE_ROOT" in ring.stays_readable()
        assert not (tmp_path / "keys" / "root.key").exists()
        for value in ("", "AAAA", base64.b64encode(bytes(32)).decode()):
            monkeypatch.setenv("STORE_ROOT", value)
            with pytest.raises(KeysMissing, match="STORE_ROOT"):
                Keyring.open(tmp_path / "keys")

    def test_root_elsewhere(self, tmp_path: Path) -> None:
        root = FileRoot.create(tmp_path / "root")
        ring = Keyring.create(tmp_path / "keys", root)
        ((slot, key),) = ring.new_keys(1)
        ring.rotate()
        assert Keyring.open(tmp_path / "keys", FileRoot(tmp_path / "root")).key(slot) == key
        with pytest.raises(KeysMissing):
            Keyring.open(tmp_path / "keys")
