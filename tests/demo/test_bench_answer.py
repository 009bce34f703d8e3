"""The bench of answers on tiny models: every way is timed and the rollback is a real one."""

from __future__ import annotations

from llm_unlearn.demo.bench_answer import WAYS, run


def test_every_way_is_timed(tiny_references: dict[str, str]) -> None:
    said: list[str] = []
    found = run(
        shards=2,
        rollback_shards=3,
        tokens=3,
        rounds=2,
        settings={
            "model": tiny_references["llama"],
            "embedder": tiny_references["embedder"],
            "training": {"top_layers": 2, "dtype": "float32", "threads": 1},
        },
        begun=said.append,
    )
    assert tuple(t.way for t in found.answers) == WAYS
    assert found.answers[0].ratio == 1.0
    for timed in (*found.answers, found.rollback):
        assert 0 < timed.least <= timed.median <= timed.most
    assert found.rollback.most < 1.0  # with three tiny adapters far below
    assert len(said) == 2
