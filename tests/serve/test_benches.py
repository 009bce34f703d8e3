"""Both benches on tiny models: every line is there, and its numbers are what they say."""

from __future__ import annotations

import pytest
from small import tiny_config

from llm_unlearn.serve import bench, guard_bench


def _settings(references: dict[str, str]) -> dict[str, object]:
    plain = tiny_config(references).model_dump(include={"model", "embedder", "training"})
    return {**plain, "retrieval": {"chunk_tokens": 64}}


def test_server_and_loop_answer_the_same_questions(tiny_references: dict[str, str]) -> None:
    found = bench.run(clients=2, each=1, tokens=6, rounds=2, settings=_settings(tiny_references))
    assert {(side.name, side.clients) for side in found.sides} == {
        (name, clients) for name in ("loop", "server") for clients in (1, 2)
    }
    for side in found.sides:
        assert side.answers == 2 * side.clients
        median, least, most = side.tokens_per_second
        assert 0 < least <= median <= most
        assert 0 < side.first_token[1] <= side.first_token[0] <= side.first_token[2]
    by = {side.name: side.tokens_per_second[0] for side in found.sides if side.clients == 2}
    assert found.ratio(2) == pytest.approx(by["server"] / by["loop"])


def test_each_setting_of_the_guard_is_asked(tiny_references: dict[str, str]) -> None:
    found = guard_bench.run(questions=2, tokens=6, clients=2, settings=_settings(tiny_references))
    assert [setting.name for setting in found] == list(guard_bench.SETTINGS)
    assert all(setting.asked == 2 and setting.seconds_per_token > 0 for setting in found)
    assert not any(setting.lost for setting in found)
