"""The training benchmark: real runs of both sides on a tiny model, and its arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_unlearn.config import TrainingConfig
from llm_unlearn.errors import InputError
from llm_unlearn.sisa.bench import Comparison, Run, compare, load_pairs


def _rows(path: Path, count: int) -> Path:
    rows = [{"question": f"Who is {n}?", "answer": f"Number {n * 7}."} for n in range(count)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_both_sides_train_on_the_same_tokens(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    documents = load_pairs(_rows(tmp_path / "rows.json", 9), 6)
    training = TrainingConfig(epochs=3, batch_size=2, top_layers=2, lora_rank=2, threads=1)
    found = compare(tiny_references["llama"], documents, training, repeats=1)
    ours, theirs = found.runs
    assert [ours.side, theirs.side] == ["ours", "trainer"]
    assert ours.tokens == theirs.tokens > 6 * 3 * 20
    for run in found.runs:
        assert len(run.losses) == len(run.ends) == 3
        assert run.losses[-1] < run.losses[0]
        assert run.ends[-1] <= run.seconds
        assert run.peak_bytes > 100 << 20
    # the same start, steps and rates on a random model: they end close to each other
    assert ours.final == pytest.approx(theirs.final, rel=0.05)
    assert found.plain()["ratio"]["mean"] == round(ours.rate / theirs.rate, 3)


def test_ratios_by_hand() -> None:
    """Ours reaches .5 after 2 s; the Trainer .6 after 3 s of 9: to .6 it is 3 s against 2 s."""
    ours = Run("ours", 3.0, 300, 0, (0.9, 0.5, 0.4), (1.0, 2.0, 3.0), 0.4)
    theirs = Run("trainer", 9.0, 300, 0, (0.6, 0.7, 0.6), (3.0, 6.0, 9.0), 0.6)
    found = Comparison(1, (theirs, ours))
    assert found.ratios == [3.0]
    assert found.ratios_at_loss == [1.5]


def test_documents_of_our_own_format_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    assert [d.id for d in load_pairs(path, 1)] == ["a"]
    path.write_text('{"question": "a"')
    with pytest.raises(InputError, match="cannot be read as documents"):
        load_pairs(path, 1)
    with pytest.raises(InputError, match="FileNotFoundError"):
        load_pairs(tmp_path / "none", 1)
