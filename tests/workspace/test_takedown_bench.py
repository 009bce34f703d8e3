"""The bench of submissions: it checks what it times, and counts what it trains."""

from __future__ import annotations

from small import tiny_config

from llm_unlearn.retrieval.bench.vectors import synthetic
from llm_unlearn.takedown_bench import measure


def test_acknowledged_and_carried_out_together(tiny_references: dict[str, str]) -> None:
    said: list[str] = []
    found = measure(
        tiny_config(tiny_references), synthetic(40, dim=32), requests=2, many=6, tell=said.append
    )
    assert (found.chunks, found.shards, found.many) == (40, 2, 6)
    assert len(found.store) == len(found.corpus) == len(found.readers) == 2
    assert found.trainings == 1
    assert min(*found.store, *found.corpus, found.planned, found.carried_out, found.verified) > 0
    assert len(said) == 4
