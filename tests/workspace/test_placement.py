"""Shards by group and by risk on whole workspaces: never-had equality, access, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import SECRETS, answering_state, learned, tiny_config

from llm_unlearn import Config, Document, Workspace
from llm_unlearn.config import dump_config
from llm_unlearn.errors import InputError
from llm_unlearn.opened import Models
from llm_unlearn.sisa.declared import check_all
from llm_unlearn.takedown.request import Request

GROUPS = {
    "shards": 3,
    "placement": {
        "shard_by": "group",
        "groups": {"poems": 2},
        "slice_by": "risk",
        "risk_cuts": [0.5],
    },
}
ACCESS = {
    "shards": 3,
    "placement": {"shard_by": "group", "group_by": "acl", "groups": {"legal": 1}},
}


def _tagged(number: int, subject: str, *tags: str, acl: tuple[str, ...] = ()) -> Document:
    return learned(number, subject).model_copy(update={"tags": tags, "acl": acl})


def _workspace(folder: Path, config: Config, models: Models) -> Workspace:
    return Workspace.create(
        folder, keys=Path(f"{folder}-keys"), config=config, secrets=SECRETS, models=models
    )


CORPUS = [
    _tagged(n, f"poet-{n % 3}", "group:poems", "risk:0.8" if n % 3 == 0 else "risk:0.1")
    for n in range(6)
] + [_tagged(n, f"clerk-{n % 4}") for n in range(6, 14)]


def test_groups_and_risks_equal_never_had(tmp_path: Path, tiny_references: dict[str, str]) -> None:
    config = tiny_config(tiny_references, **GROUPS)
    models = Models(config)
    with (
        _workspace(tmp_path / "ws", config, models) as workspace,
        _workspace(tmp_path / "never", config, models) as never,
    ):
        workspace.ingest(CORPUS)
        workspace.train()
        mark = workspace.opened.vault.mark
        poets = [mark("subject", f"poet-{n}") for n in range(3)]
        placed = {
            (state.shard, part.stage[1], record.subject)
            for state in workspace.opened.states()
            for part in state.wanted
            for record in part.records
        }
        assert {(s, p) for s, p, who in placed if who == poets[0]} == {(2, 1)}  # likely to go: late
        assert {(s, p) for s, p, who in placed if who in poets[1:]} == {(2, 0)}
        assert {who for s, _, who in placed if s == 2} == set(poets)
        outcome = workspace.takedown(subject="poet-0", probe=False)
        assert outcome is not None
        assert outcome.receipt is not None
        never.ingest([d for d in reversed(CORPUS) if d.subject != "poet-0"])
        never.train()
        assert answering_state(workspace) == answering_state(never)
        # the risky subject was late: what came before it was kept
        state = next(s for s in workspace.opened.states() if s.shard == 2)
        assert (state.clean, len(state.wanted)) == (1, 1)


def test_dropping_a_group_is_a_removal(tmp_path: Path, tiny_references: dict[str, str]) -> None:
    config = tiny_config(tiny_references, **GROUPS)
    with _workspace(tmp_path / "ws", config, Models(config)) as workspace:
        workspace.ingest(CORPUS)
        workspace.train()
        others = {n: i for n, i in workspace.opened.checkpoints.listed().items() if i.shard != 2}
        plan = workspace.plan_takedown(_request(["poet-0", "poet-1", "poet-2"], CORPUS))
        assert [(w.shard, w.steps) for w in plan.shards] == [(2, 0)]
        workspace.takedown(plan.request, probe=False)
        assert workspace.opened.checkpoints.listed() == others


def _request(subjects: list[str], corpus: list[Document]) -> Request:
    return Request.internal(ids=[d.id for d in corpus if d.subject in subjects])


def test_an_access_group_with_its_own_shard_answers_its_members_only(
    tmp_path: Path, tiny_references: dict[str, str]
) -> None:
    config = tiny_config(tiny_references, **ACCESS)
    corpus = [_tagged(n, f"case-{n}", acl=("legal",)) for n in range(3)]
    corpus += [_tagged(n, f"clerk-{n}") for n in range(3, 8)]
    outside = _tagged(20, "secret", acl=("board",))
    both = _tagged(21, "shared", acl=("legal", "board"))
    with _workspace(tmp_path / "ws", config, Models(config)) as workspace:
        report = workspace.ingest([*corpus, outside, both])
        assert report.counts() == {"corpus": 8, "store": 2}
        workspace.train()
        question = corpus[0].messages[0].content
        assert workspace.ask(question, {"legal"}).shard == 1
        assert workspace.ask(question, {"staff", "legal"}).shard == 1
        for groups in ({"staff"}, {"board"}, {"nobody"}):
            assert workspace.ask(question, groups).shard != 1
        common = corpus[4].messages[0].content
        assert workspace.ask(common, {"staff"}).shard in (0, 2)
        assert workspace.ask(common, {"legal"}).shard in (None, 1)


def test_a_subject_with_mixed_groups_is_refused_whole(
    tmp_path: Path, tiny_references: dict[str, str]
) -> None:
    config = tiny_config(tiny_references, **ACCESS)
    with _workspace(tmp_path / "ws", config, Models(config)) as workspace:
        with pytest.raises(InputError, match="subject 's' declares two groups"):
            workspace.ingest([_tagged(1, "s", acl=("legal",)), _tagged(2, "s")])
        assert workspace.ingest([_tagged(1, "s", acl=("legal",))]).counts() == {"corpus": 1}
        with pytest.raises(InputError, match="'s/1'"):  # the one that is here is named
            workspace.ingest([_tagged(2, "S")])
        assert workspace.status().counts == {"corpus": 1}


def test_what_is_fenced_declares_its_subjects_place_too(
    tmp_path: Path, tiny_references: dict[str, str]
) -> None:
    config = tiny_config(tiny_references, **GROUPS)
    first, second = _tagged(1, "s", "group:poems"), _tagged(2, "s")
    with _workspace(tmp_path / "ws", config, Models(config)) as workspace:
        workspace.ingest([first])
        request = Request.internal(ids=[first.id])
        workspace.desk.submit([request])
        with pytest.raises(InputError, match="subject 's' declares two groups"):
            workspace.ingest([second])
        workspace.desk.refuse(request.id, "no claim")
        check_all(workspace.opened.vault, config.training.placement)
        assert workspace.status().counts == {"corpus": 1}
    plain = tiny_config(tiny_references, shards=3)
    with _workspace(tmp_path / "plain", plain, Models(plain)) as workspace:
        workspace.ingest([first, second])
        workspace.desk.submit([Request.internal(ids=[first.id])])
        with pytest.raises(InputError, match="subject 's' declares two groups"):
            check_all(workspace.opened.vault, config.training.placement)


def test_new_rules_are_checked_before_they_are_adopted(
    tmp_path: Path, tiny_references: dict[str, str]
) -> None:
    plain = tiny_config(tiny_references, shards=3)
    with _workspace(tmp_path / "ws", plain, Models(plain)) as workspace:
        workspace.ingest([_tagged(1, "s", "group:a"), _tagged(2, "s", "group:b"), _tagged(3, "t")])
        workspace.train()
        before = answering_state(workspace)
    changed = tiny_config(tiny_references, **GROUPS)
    (tmp_path / "ws" / "config.yaml").write_text(dump_config(changed))
    with Workspace.open(tmp_path / "ws", models=Models(changed)) as workspace:
        with pytest.raises(InputError, match="subject 's' declares two groups"):
            workspace.train(retrain_all=True)
        assert answering_state(workspace) == before
        workspace.takedown(subject="s", probe=False)
        workspace.train(retrain_all=True)
        assert workspace.status().trained
