"""Checkpoints at rest: sealed, listed only when durable, gone when disposed of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_unlearn.errors import Damaged
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.sisa.checkpoints import Checkpoints, serialise
from llm_unlearn.sisa.layout import Slice
from llm_unlearn.sisa.train import TrainState

STATE = TrainState(
    {"w.lora_A.weight": torch.arange(64.0)}, {"exp_avg.w.lora_A.weight": torch.ones(64)}, 7
)
PART = Slice(2, (1, 0), (), b"i" * 32)


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    database = Database.open(tmp_path / "workspace.db", create=True)
    keyring = Keyring.create(tmp_path / "keys")
    Checkpoints.create_table(database)
    return Checkpoints(tmp_path / "adapters", database, keyring)


def test_what_is_saved_comes_back_and_is_not_in_the_file(kept: Checkpoints) -> None:
    kept.save(PART, STATE)
    listed = kept.listed()[PART.name]
    assert PART.name == "shard-02.generation-001.slice-00"
    assert serialise(kept.load(listed)) == serialise(STATE)
    sealed = kept.path(PART.name).read_bytes()
    assert torch.arange(8.0, 16.0).numpy().tobytes() not in sealed
    assert b"lora_A" not in sealed


def test_disposed_means_unreadable_even_from_a_copy(kept: Checkpoints) -> None:
    kept.save(PART, STATE)
    listed = kept.listed()[PART.name]
    copy = kept.path(PART.name).read_bytes()
    assert kept.dispose([listed]) == [PART.name]
    assert not kept.listed()
    assert not kept.path(PART.name).exists()
    kept.path(PART.name).write_bytes(copy)
    with pytest.raises(Damaged):
        kept.load(listed)
    kept.sweep()
    assert not kept.path(PART.name).exists()


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_changed_byte_is_detected_and_named(kept: Checkpoints, at: int) -> None:
    kept.save(PART, STATE)
    path = kept.path(PART.name)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"shard-02.generation-001.slice-00 is damaged.*--repair"):
        kept.load(kept.listed()[PART.name])
    assert [item.name for item in kept.unreadable()] == [PART.name]


def test_a_missing_file_is_named(kept: Checkpoints) -> None:
    kept.save(PART, STATE)
    kept.path(PART.name).unlink()
    with pytest.raises(Damaged, match=r"is missing.*--repair"):
        kept.load(kept.listed()[PART.name])


def test_a_checkpoint_under_another_name_is_not_believed(kept: Checkpoints) -> None:
    other = Slice(1, (1, 0), (), b"j" * 32)
    kept.save(PART, STATE)
    kept.save(other, STATE)
    kept.path(PART.name).write_bytes(kept.path(other.name).read_bytes())
    with pytest.raises(Damaged):
        kept.load(kept.listed()[PART.name])


def test_an_unlisted_file_is_swept_and_its_key_was_never_listed(kept: Checkpoints) -> None:
    kept.save(PART, STATE)
    stray = kept.path("shard-09.generation-001.slice-00")
    stray.write_bytes(b"left by a crash before it was listed")
    kept.sweep()
    assert not stray.exists()
    assert list(kept.listed()) == [PART.name]
