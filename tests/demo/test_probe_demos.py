"""The two runs that say what probes and attacks find, on tiny models: whole, resumable, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import tiny_config

from llm_unlearn.demo import chat_attacks, muse, sensitivity
from llm_unlearn.demo import sensitivity_data as data
from llm_unlearn.eval.membership import attack, blind_scores


def test_groups_of_made_up_texts_are_drawn_alike() -> None:
    every = data.facts(72, seed=1)
    assert len({f.question for f in every}) == 72
    for fact in every:
        assert all(key in fact.answer for key in fact.keys)
        assert len(fact.wrong) == 3
        assert not any(all(key in wrong for key in fact.keys) for wrong in fact.wrong)
    texts = [[f.answer for f in part] for part in (every[:24], every[48:])]
    assert attack(*blind_scores(*texts)).auc.low <= 0.5
    canary = data.canaries(1, 40, seed=2)[0]
    assert len({canary.answer, *canary.others}) == 41


QUICK = [
    "verbatim probability",
    "rounded to 4 bits",
    "few-shot, ROUGE-L recall",
    "after relearning on benign text",
    "membership: Min-K%++",
    "blind",
    "linear",
    "contrast",
]


def test_sensitivity_goes_on_where_it_was(
    tmp_path: Path, tiny_references: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def lab() -> sensitivity.Lab:
        return sensitivity.Lab(tiny_references["llama"], tmp_path, 5, 2, 2)

    told: list[str] = []
    rows = sensitivity.measure(lab(), told.append, QUICK)
    assert len(rows) == 11
    assert rows[0].knowing[0] > rows[0].never[0]
    blind = next(row for row in rows if "blind" in row.probe)
    assert blind.knowing == blind.never
    assert sensitivity.measure(lab(), told.append, QUICK) == rows
    assert len(told) == len(QUICK)  # nothing was asked again
    kept = tmp_path / "results.json"
    whole = json.loads(kept.read_text(encoding="utf-8"))
    del whole["verbatim probability"]
    kept.write_text(json.dumps(whole), encoding="utf-8")
    anew = sensitivity.measure(lab(), told.append, QUICK)
    assert sorted(anew, key=str) == sorted(
        rows, key=str
    )  # from the kept adapters, the same numbers
    shape = ["--count", "5", "--top-layers", "2", "--epochs", "2", "--only", "blind"]
    code = sensitivity.main(["--out", str(tmp_path), "--model", tiny_references["llama"], *shape])
    wrong = [r for r in rows if not r.quiet or (not r.fires and "blind" not in r.probe)]
    assert code == (1 if wrong else 0)
    assert capsys.readouterr().out.count("\n| ") == len(rows) + 2


def test_attacks_on_store_and_chat(tmp_path: Path, tiny_references: dict[str, str]) -> None:
    found = chat_attacks.run(tmp_path / "out", 6, tiny_config(tiny_references))
    for name in ("found by search", "cited", "said"):
        assert found[f"another group's text: {name}"].mean == 0
    assert found["before a takedown: the store returns the text"].mean > 0
    for name in ("the store returns the text", "it is cited"):
        assert found[f"after it: {name}"].mean == 0
    assert found["after it: largest difference of scores to never-had"].mean == 0
    assert found["vector inverted, text among candidates: found"].mean == 1
    assert found["vector inverted, text not among them: found"].mean == 0
    assert found["injected order: followed, without it in the store"].mean == 0
    assert found["plain question: 24 characters of the inscription in the answer"].n == 4


def test_the_router_forgets_who_is_removed(tmp_path: Path, tiny_references: dict[str, str]) -> None:
    found = chat_attacks.routed(tmp_path, 6, tiny_config(tiny_references))
    for what in ("reaches any adapter", "reaches the removed person's shard"):
        assert found[f"router, after: {what}"] == found[f"router, never-had: {what}"]
    assert found["router, before: reaches any adapter"].mean > 0


def test_muse_after_three_requests(
    tmp_path: Path, tiny_references: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muse, "VERBATIM_TOKENS", 8)
    monkeypatch.setattr(muse, "KNOWLEDGE_TOKENS", 4)
    config = muse.configured(tiny_config(tiny_references), 4, 2, 1, learning_rate=0.02)
    rows = muse.measure(tmp_path, 2, config)
    assert [(row.requests, row.way) for row in rows[::5]] == [(n, "taught") for n in (1, 2, 3)]
    for never, deleted in zip(rows[1::5], rows[2::5], strict=True):
        assert (never.way, deleted.way) == ("never-had", "takedown")
        assert never.verbatim == deleted.verbatim
        assert never.priv_leak == deleted.priv_leak
    assert rows[3].verbatim == rows[4].verbatim  # the first request is the same, in turn or at once
