"""Orders of slices and blocks of layers: what survives a deletion, and that nothing else moves."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.config import TrainingConfig
from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lora import AdapterHost, LoraShape
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.vault import Record
from llm_unlearn.sisa.build import build, shard_states
from llm_unlearn.sisa.checkpoints import Checkpoints, serialise
from llm_unlearn.sisa.layout import Layout, slice_number, slices
from llm_unlearn.sisa.orders import deletions_survived, slice_orders
from llm_unlearn.sisa.train import StageSettings, TrainState, train_stage


def test_orders_by_hand() -> None:
    assert slice_orders(4, 1) == ((0, 1, 2, 3),)
    assert slice_orders(4, 4) == ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))
    assert slice_orders(5, 2) == ((0, 1, 2, 3, 4), (2, 3, 4, 0, 1))
    # likely slices (the last three) stay last
    assert slice_orders(5, 3, (2, 3)) == ((0, 1, 2, 3, 4), (0, 1, 3, 4, 2), (1, 0, 4, 2, 3))
    with pytest.raises(ValueError, match="1 to 4"):
        slice_orders(4, 5)


@given(st.integers(1, 12), st.data())
def test_every_order_holds_every_slice_and_begins_with_its_own(
    count: int, data: st.DataObject
) -> None:
    orders = slice_orders(count, data.draw(st.integers(1, count)))
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({order[0] for order in orders}) == len(orders)


@pytest.mark.parametrize(("count", "orders"), [(4, 1), (4, 2), (4, 4), (6, 3)])
def test_how_many_deletions_a_shard_survives(count: int, orders: int) -> None:
    """The formula against simulation: 4000 lives, each until every order's first slice was hit."""
    drawn = random.Random(1)
    firsts = {order[0] for order in slice_orders(count, orders)}
    lives = []
    for _ in range(4000):
        left, deletions = set(firsts), 0
        while left:
            deletions += 1
            left.discard(drawn.randrange(count))
        lives.append(deletions)
    mean = sum(lives) / len(lives)
    spread = (sum((x - mean) ** 2 for x in lives) / len(lives)) ** 0.5 / len(lives) ** 0.5
    assert abs(mean - deletions_survived(count, orders)) < 4 * spread


def test_impossible_settings_are_told() -> None:
    with pytest.raises(ValueError, match=r"set training\.orders to 1 to 3"):
        TrainingConfig(slices=3, orders=4)
    with pytest.raises(ValueError, match=r"raise training\.top_layers"):
        TrainingConfig(slices=12, blocks=True)
    TrainingConfig(slices=12, blocks=True, top_layers=None)


def test_names_and_numbers_of_checkpoints() -> None:
    parts = [p for ps in _laid(range(24), orders=2).values() for p in ps]
    numbers = {(p.shard, slice_number(p.name, 3, 2)) for p in parts}
    assert len(numbers) == len(parts) == len({p.name for p in parts})
    assert not any("order" in p.name for p in parts if p.order == 0)


def _mark(*value: object) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()[:16]


def _record(number: int) -> Record:
    content = _mark("content", number)
    return Record(_mark(number), _mark("s", number), b"", content, "corpus", "live", 1, number)


def _laid(numbers: range, orders: int = 1) -> dict[int, list]:  # type: ignore[type-arg]
    layout = Layout(bytes(32), shards=2, slices=3, orders=orders)
    return dict(slices(layout, b"recipe", [_record(n) for n in numbers]))


def test_a_second_order_leaves_the_first_as_it_was_and_binds_the_same_slices() -> None:
    one, two = _laid(range(24)), _laid(range(24), orders=2)
    for shard, parts in one.items():
        assert parts == [p for p in two[shard] if p.order == 0]
        other = [p for p in two[shard] if p.order == 1]
        assert {p.records for p in other} == {p.records for p in parts}
        assert [p.stage[1] for p in other] == [1, 2, 0]
        assert not {p.inputs for p in other} & {p.inputs for p in parts}
        assert [p.before for p in other] == [None, other[0].inputs, other[1].inputs]


def _examples(count: int) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(count):
        ids = torch.randint(5, 200, (6 + i,), generator=generator).tolist()
        made.append(Example(tuple(ids), (False,) * 3 + (True,) * (3 + i)))
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_block_trains_alone_as_plain_gradients_say(
    tiny_references: dict[str, str], kind: str, place: int
) -> None:
    """One AdamW step of one block beside gradients through the whole model, others filled with noise."""
    host = AdapterHost(load_causal(tiny_references[kind], "float32"), LoraShape(4, 8, 4))
    block = host.block(place, 3)
    generator = torch.Generator().manual_seed(5)
    start = {
        name: 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in host.fresh(b"s").items()
    }
    examples = _examples(2)
    settings = StageSettings(1, 2, 1e-2, 0.0, 0.0, 1e9)
    ours = train_stage(host, TrainState(start, {}, 0), [examples], settings, b"x", block=block)
    assert (ours.trained, ours.moments, ours.step) == (block.names, {}, 1)
    assert all(p.requires_grad for p in host.parameters())
    host.load(start)
    total, count = torch.zeros(()), 0
    for example in examples:
        logits = host.model(input_ids=torch.tensor([example.ids])).logits[0].float()
        logp = torch.log_softmax(logits, -1)
        for position, predicted in enumerate(example.loss):
            if predicted:
                total, count = total - logp[position - 1, example.ids[position]], count + 1
    gradients = torch.autograd.grad(total / count, host.parameters(block.names))
    expected = dict(start)
    for name, gradient in zip(block.names, gradients, strict=True):
        expected[name] = start[name] - 1e-2 * gradient / (gradient.abs() + 1e-8)
        moved = gradient.abs() > 1e-6  # below that, float noise decides the sign
        assert moved.any()
        torch.testing.assert_close(
            ours.adapter[name][moved], expected[name][moved], rtol=0, atol=2e-4
        )
    assert all(ours.adapter[n].equal(start[n]) for n in host.names if n not in block.names)


def test_blocks_are_layers_by_number_from_the_top(tiny_references: dict[str, str]) -> None:
    host = AdapterHost(load_causal(tiny_references["llama"], "float32"), LoraShape(2, 4, None))
    blocks = [host.block(place, 3) for place in range(3)]
    assert [b.first for b in blocks] == [3, 2, 0]  # four layers: 1, 1 and 2 of them
    assert sorted(n for b in blocks for n in b.names) == host.names
    assert all(".layers.3." in name for name in blocks[0].names)
    with pytest.raises(InputError, match="5 slices do not fit into blocks of 4"):
        host.block(0, 5)


def test_a_chain_of_blocks_on_disk(tmp_path: Path, tiny_references: dict[str, str]) -> None:
    """Each file holds its block; what is loaded is the chain; a replaced link is told."""
    host = AdapterHost(load_causal(tiny_references["llama"], "float32"), LoraShape(2, 4, 3))
    training = TrainingConfig.model_validate(
        {"shards": 2, "slices": 3, "epochs": 2, "batch_size": 2, "top_layers": 3, "lora_rank": 2,
         "dtype": "float32", "threads": 1, "blocks": True}
    )  # fmt: skip
    database = Database.open(tmp_path / "workspace.db", create=True)
    Checkpoints.create_table(database)
    kept = Checkpoints(tmp_path / "adapters", database, Keyring.create(tmp_path / "keys"))
    made: list[TrainState] = []

    def keep(part: object, state: TrainState) -> None:
        made.append(state)
        kept.save(part, state)  # type: ignore[arg-type]

    wanted = {0: _laid(range(24))[0]}

    def read(record: Record) -> list[Example]:
        return [Example(tuple(5 + b % 200 for b in record.content[:6]), (False,) * 2 + (True,) * 4)]

    build(shard_states(wanted, {}), host, kept, training, read, keep=keep)
    first, second, third = (kept.listed()[part.name] for part in wanted[0])
    for item, state, place in zip((first, second, third), made, range(3), strict=True):
        loaded = kept.load(item)
        assert serialise(loaded) == serialise(state)
        assert sorted(loaded.adapter) == host.names
        assert all(loaded.adapter[n].equal(state.adapter[n]) for n in host.names)
        later = {n for p in range(place + 1, 3) for n in host.block(p, 3).names}
        assert not any(loaded.adapter[n].any() for n in later)  # switched off
        assert all(loaded.adapter[n].any() for n in host.block(place, 3).names)
        blob = kept.plaintext(item)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        stored = {n.removeprefix("adapter.") for n in header if n != "__metadata__"}
        assert stored == set(host.block(place, 3).names)
    kept.dispose([first])
    changed = {n: t + 1 for n, t in made[0].adapter.items()}
    kept.save(wanted[0][0], TrainState(changed, {}, 1, made[0].trained))
    with pytest.raises(Damaged, match=r"is not the one that .*slice-01 was trained upon"):
        kept.load(second)
    assert {i.name for i in kept.unreadable()} == {second.name, third.name}
    kept.dispose([kept.listed()[first.name]])
    with pytest.raises(Damaged, match="trained upon is gone"):
        kept.load(third)
