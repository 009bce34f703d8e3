"""Random lives of a sharded corpus: whatever happened, the checkpoints are those of never-had.

Adds, deletions, further generations, training that is cut short anywhere and goes on, over every way of
slicing, down to real training of a tiny model; compared as plaintext, moments and step included.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_unlearn.config import TrainingConfig
from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lora import AdapterHost, LoraShape
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.build import build, planned_steps, shard_states, stage_records, stale
from llm_unlearn.sisa.checkpoints import Checkpoints
from llm_unlearn.sisa.layout import Layout, Slice, slices

MODES: dict[str, dict[str, object]] = {
    "cumulative": {},
    "sequential": {"slicing": "sequential"},
    "orders": {"orders": 2},
    "blocks": {"orders": 2, "blocks": True},
}


class _Cut(Exception):
    """Training ends here, as by a kill between two steps."""


def _training(mode: str) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "shards": 2,
            "slices": 3,
            "replay": 0.5,
            "epochs": 2,
            "batch_size": 2,
            "top_layers": 3,
            "lora_rank": 2,
            "dtype": "float32",
            "threads": 1,
            **MODES[mode],
        }
    )


def _mark(*value: object) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()[:16]


def _record(number: int, generation: int) -> Record:
    """Three documents a subject: one of them deleted leaves a subject with the others."""
    return Record(
        handle=_mark("id", number),
        subject=_mark("subject", number // 3),
        source=_mark("source"),
        content=_mark("content", number),
        fate="corpus",
        state="live",
        generation=generation,
        slot=number,
    )


def _read(record: Record) -> list[Example]:
    """Five to eight tokens from the content; one document in eight has none to predict."""
    content = record.content
    if content[1] % 8 == 0:
        return []
    length = 5 + content[0] % 4
    loss = (False, False) + (True,) * (length - 2)
    return [Example(tuple(5 + b % 200 for b in content[:length]), loss)]


class _Life:
    """A place for checkpoints and what is live."""

    def __init__(self, folder: Path, host: AdapterHost, training: TrainingConfig) -> None:
        database = Database.open(folder / "workspace.db", create=True)
        Checkpoints.create_table(database)
        keyring = Keyring.create(folder / "keys")
        self.checkpoints = Checkpoints(folder / "adapters", database, keyring)
        self.host, self.training = host, training
        self.live: dict[int, Record] = {}
        self.layout = Layout(bytes(32), training.shards, training.slices, orders=training.orders)

    def train(self, most: int | None = None) -> None:
        """Dispose of what is stale, then build; `most` steps and no more, if given."""
        wanted = slices(self.layout, b"recipe", self.live.values())
        self.checkpoints.dispose(stale(wanted, self.checkpoints.listed()))

        def step(_label: str, done: int, _total: int, _loss: float) -> None:
            if most is not None and done >= most:
                raise _Cut

        states = shard_states(wanted, self.checkpoints.listed())
        with contextlib.suppress(_Cut):
            build(states, self.host, self.checkpoints, self.training, _read, step)

    def plain(self) -> dict[str, bytes]:
        """Every checkpoint by name."""
        listed = self.checkpoints.listed()
        return {name: self.checkpoints.plaintext(item) for name, item in listed.items()}


@pytest.fixture(scope="module")
def host(tiny_references: dict[str, str]) -> AdapterHost:
    return AdapterHost(load_causal(tiny_references["llama"], "float32"), LoraShape(2, 4, 3))


numbers = st.integers(0, 17)
deeds = st.one_of(
    st.tuples(st.just("add"), st.lists(numbers, min_size=1, max_size=6)),
    st.tuples(st.just("delete"), st.lists(numbers, min_size=1, max_size=4)),
    st.tuples(st.just("train"), st.none()),
    st.tuples(st.just("cut"), st.integers(1, 12)),
)
Deeds = list[tuple[str, object]]


@pytest.mark.parametrize("mode", MODES)
@given(done=st.lists(deeds, min_size=2, max_size=7))
@example(done=[("add", list(range(9))), ("train", None), ("delete", list(range(9)))])  # all gone
@example(done=[("add", list(range(9))), ("train", None), ("delete", [0, 1])])  # all but one
@example(done=[("add", list(range(6))), ("train", None), ("add", [9, 10, 3]), ("train", None)])
@example(done=[("add", list(range(9))), ("cut", 3), ("delete", [4]), ("add", [4]), ("cut", 5)])
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_life_ends_as_if_the_rest_had_never_been(
    host: AdapterHost, mode: str, done: Deeds
) -> None:
    torch.set_num_threads(1)
    training = _training(mode)
    with tempfile.TemporaryDirectory() as folder:
        (lived := Path(folder, "lived")).mkdir()
        (fresh := Path(folder, "fresh")).mkdir()
        life = _Life(lived, host, training)
        for generation, (deed, value) in enumerate(done):
            if deed == "add":
                assert isinstance(value, list)
                for number in value:
                    life.live.setdefault(number, _record(number, generation))
            elif deed == "delete":
                assert isinstance(value, list)
                for number in value:
                    life.live.pop(number, None)
            else:
                assert value is None or isinstance(value, int)
                life.train(value)
        life.train()
        never = _Life(fresh, host, training)
        never.live = dict(reversed(life.live.items()))
        never.train()
        assert life.plain() == never.plain()
        assert bool(life.live) == bool(life.plain())


def _slice(stage: int, members: Sequence[int]) -> Slice:
    return Slice(0, (1, stage), tuple(_record(n, 1) for n in members), b"")


def test_a_sequential_stage_sees_itself_and_a_replay_of_earlier_slices() -> None:
    training = _training("sequential")
    parts = [_slice(0, range(8)), _slice(1, range(8, 12)), _slice(2, range(12, 15))]
    assert stage_records(parts[:1], training) == [parts[0].records]
    own, replayed = stage_records(parts, training)
    assert own == parts[2].records
    assert len(replayed) == 2  # half of three, rounded up
    earlier = set(parts[0].records + parts[1].records)
    assert set(replayed) < earlier
    # a document that is not replayed goes: the same are; one that is goes: only its place is filled
    for gone in earlier:
        without = [Slice(0, p.stage, tuple(r for r in p.records if r != gone), b"") for p in parts]
        again = set(stage_records(without, training)[1])
        assert len(again) == 2
        assert set(replayed) - {gone} <= again
    assert stage_records(parts, training.model_copy(update={"replay": 0.0})) == [own]


def test_what_a_stage_costs_by_hand() -> None:
    """Slices of 8, 4 and 3, batches of 2, two epochs.

    Cumulative passes: round(2 * 2 / 4) = 1; steps 4 + (4 + 2) + (4 + 2 + 2) = 18. Sequential: 2 passes
    of 4, 2 + 1 and 2 + 1 steps.
    """
    parts = (_slice(0, range(8)), _slice(1, range(8, 12)), _slice(2, range(12, 15)))
    wanted = {0: parts}
    (state,) = shard_states(wanted, {})
    assert planned_steps(state, _training("cumulative")) == 18
    assert planned_steps(state, _training("sequential")) == 2 * (4 + 3 + 3)
