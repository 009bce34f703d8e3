"""What must not happen: an answer that outlives its source, a case that blocks its own cure."""

from __future__ import annotations

import threading
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small import Maker, answering_state, learned, stored, tiny_config

from llm_unlearn import Document, Message, Workspace
from llm_unlearn.errors import Damaged, EnvironmentFailure, InputError, NotFound, WorkspaceMissing
from llm_unlearn.models.causal import generate
from llm_unlearn.opened import Models
from llm_unlearn.takedown import machine

DOCUMENTS = [learned(n, f"author-{n % 4}") for n in range(8)] + [
    stored(n, f"work-{n}") for n in range(3)
]


def _ready(make: Maker, name: str = "ws") -> Workspace:
    workspace = make(name)
    workspace.ingest(DOCUMENTS)
    workspace.train()
    return workspace


def _damage(workspace: Workspace, which: int) -> None:
    listed = sorted(workspace.opened.checkpoints.listed())
    path = workspace.opened.checkpoints.path(listed[which])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_no_answer_outlives_a_takedown_that_comes_while_it_is_made(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demand lands after the sources of both questions were chosen for the last time."""
    workspace = make()
    workspace.ingest(DOCUMENTS)
    questions = [d.content for d in DOCUMENTS if d.subject in ("work-0", "work-1")]
    assert {a.origin for a in workspace.ask_many(questions, {"staff"})} == {"store"}
    answerer: Any = workspace._answerer
    original, calls = answerer.answer, []

    def late(*arguments: Any) -> Any:
        answers = original(*arguments)
        if not calls:
            with Workspace.open(workspace.path, models=workspace.opened.models) as other:
                other.takedown(subject="work-0", probe=False)
        calls.append(1)
        return answers

    monkeypatch.setattr(answerer, "answer", late)
    answers = workspace.ask_many(questions, {"staff"})
    assert len(calls) == 2
    assert "work-0" not in {hit.subject for answer in answers for hit in answer.citations}


def test_threads_take_the_model_in_turn(make: Maker) -> None:
    host = _ready(make).opened.models.host
    entered, seen = threading.Event(), []

    def other() -> None:
        entered.set()
        with host.using(host.fresh(b"x")):
            seen.append("in")

    with host.using(None):
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
        thread.join(0.2)
        assert not seen
    thread.join()
    assert seen == ["in"]


@pytest.mark.parametrize("which", [0, -1])
def test_a_damaged_checkpoint_blocks_no_takedown(make: Maker, which: int) -> None:
    workspace = _ready(make)
    _damage(workspace, which)
    for subject in ("author-0", "author-1", "work-2"):
        assert workspace.takedown(subject=subject) is not None
        mark = workspace.opened.vault.mark("subject", subject)
        assert not workspace.opened.vault.records(subject=mark, states=("live", "fenced"))
    workspace.train(repair=True)
    assert [state for _, state, _ in workspace.status().takedowns] == ["receipted"] * 3
    never = make("never")
    never.ingest([d for d in DOCUMENTS if d.subject not in ("author-0", "author-1", "work-2")])
    never.train()
    assert answering_state(workspace) == answering_state(never)


def test_repair_builds_a_damaged_checkpoint_again(make: Maker) -> None:
    workspace = _ready(make)
    before = answering_state(workspace)
    _damage(workspace, -1)
    with pytest.raises(Damaged, match="--repair"):
        answering_state(workspace)
    workspace.train(repair=True)
    assert answering_state(workspace) == before


def test_a_conversation_must_have_someone_to_answer() -> None:
    with pytest.raises(ValidationError, match="needs a message of the user"):
        Document(id="x", messages=(Message(role="assistant", content="hello"),))


def test_what_a_chat_template_refuses_is_named_and_can_be_taken_down(make: Maker) -> None:
    workspace = make()
    workspace.ingest(DOCUMENTS)
    template = workspace.opened.models.host.base.tokenizer.chat_template
    refusing = "{% if messages[0]['content'] == 'odd' %}{{ raise_exception('no') }}{% endif %}"
    workspace.opened.models.host.base.tokenizer.chat_template = refusing + template
    odd = (Message(role="user", content="odd"), Message(role="assistant", content="even"))
    workspace.ingest([Document(id="odd/1", subject="odd", license="CC0-1.0", messages=odd)])
    with pytest.raises(InputError, match=r"'odd/1' cannot be trained on: .*template refuses"):
        workspace.train()
    workspace.takedown(subject="work-1", probe=False)
    assert workspace.takedown(subject="odd") is not None
    workspace.train()
    assert {s.state for s in workspace.status().shards} <= {"clean", "empty"}


def test_a_takedown_needs_no_model_to_be_accepted(
    make: Maker, tiny_references: dict[str, str], tmp_path: Path
) -> None:
    path = _ready(make).path
    models = Models(tiny_config(tiny_references).model_copy(update={"model": str(tmp_path / "no")}))
    with Workspace.open(path, models=models) as workspace:
        with pytest.raises(EnvironmentFailure):
            _ = models.host
        outcome = workspace.takedown(subject="author-3")
        assert outcome is not None
        assert outcome.receipt is None
        assert "does not exist" in (outcome.waiting or "")
        assert workspace.status().takedowns == [(1, "disposed", None)]


def test_a_second_demand_is_fenced_before_the_first_is_retrained(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = _ready(make)
    log: list[str] = []

    def interrupted(*_arguments: Any, **_options: Any) -> Any:
        raise KeyboardInterrupt

    subject = next(
        name
        for name in (f"author-{n}" for n in range(4))
        if any(w.retrained for w in workspace.plan_takedown(_request(subject=name)).shards)
    )
    monkeypatch.setattr(machine, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workspace.takedown(subject=subject, probe=False)
    monkeypatch.undo()
    original = machine.build

    def watched(*arguments: Any, **options: Any) -> Any:
        log.append("retrained")
        return original(*arguments, **options)

    monkeypatch.setattr(machine, "build", watched)
    workspace.takedown(subject="work-0", probe=False, on_state=log.append)
    assert log[0] == "received"
    assert "retrained" in log
    assert [state for _, state, _ in workspace.status().takedowns] == ["receipted"] * 2


def test_an_edited_config_costs_no_checkpoint(make: Maker) -> None:
    workspace = _ready(make)
    before = set(workspace.opened.checkpoints.listed())
    config = workspace.path / "config.yaml"
    config.write_text(config.read_text().replace("slices: 2", "slices: 3"))
    with Workspace.open(workspace.path) as edited:
        assert edited.config.training.slices == 3
        edited.takedown(subject="work-0", probe=False)
        assert set(edited.opened.checkpoints.listed()) == before
        assert {s.state for s in edited.status().shards} == {"clean"}


def test_one_name_in_two_spellings_is_one_subject(make: Maker) -> None:
    workspace = make()
    composed, decomposed = (unicodedata.normalize(f, "José Bré") for f in ("NFC", "NFD"))
    workspace.ingest([stored(1, composed), stored(2, decomposed), stored(3, "josé  BRÉ")])
    plan = workspace.plan_takedown(_request(subject=composed))
    assert len(plan.removed) == 3


def _request(**named: Any) -> Any:
    from llm_unlearn.takedown.request import Request

    return Request.internal(**named)


def test_a_failing_dry_run_leaves_another_ingest_alone(make: Maker) -> None:
    workspace = make()
    workspace.ingest([stored(0, "work")])
    other = stored(0, "work").model_copy(update={"text": "quite other words"})

    def halfway() -> Any:
        for n in range(1, 70):
            yield stored(n, "work")
        with pytest.raises(InputError, match="other words"):
            workspace.ingest([other], dry_run=True)
        yield stored(70, "work")

    workspace.ingest(halfway())
    assert workspace.status().counts == {"store": 71}


def test_other_groups_or_licence_are_not_silently_ignored(make: Maker) -> None:
    workspace = make()
    document = stored(1, "work")
    workspace.ingest([document])
    for change in ({"acl": ("secret",)}, {"license": "CC0-1.0"}, {"tags": ("x",)}):
        with pytest.raises(InputError, match="other words or other data"):
            workspace.ingest([document.model_copy(update=change)])


@pytest.mark.parametrize("apart", [1, 65])
def test_one_document_twice_in_a_run_counts_once(make: Maker, apart: int) -> None:
    workspace = make()
    documents = [stored(n, "work") for n in range(apart)]
    report = workspace.ingest([*documents, documents[0]])
    assert report.counts() == {"store": apart, "known": 1}
    assert workspace.ingest([*documents, documents[0]], dry_run=True).counts() == {
        "known": apart + 1
    }


def test_a_pasted_passage_with_page_breaks_is_understood(make: Maker) -> None:
    workspace = make()
    workspace.ingest([stored(1, "work")])
    plan = workspace.plan_takedown(_request(text=stored(1, "work").content.replace(": ", ":\f ")))
    assert [item.kind for item in plan.removed] == ["exact"]


def test_questions_that_cannot_be_asked(make: Maker) -> None:
    workspace = _ready(make)
    with pytest.raises(InputError, match="not valid UTF-8"):
        workspace.ask("what \udcff is this?", {"staff"})
    with pytest.raises(InputError, match="more than the 2048"):
        generate(workspace.opened.models.host.base, [[7] * 2045], max_new_tokens=8)


def test_what_is_not_ours_in_the_folder_of_checkpoints_stays(make: Maker) -> None:
    workspace = _ready(make)
    (workspace.path / "adapters" / "notes").mkdir()
    (workspace.path / "adapters" / "README").write_text("mine")
    workspace.ingest([stored(9, "late")])
    assert (workspace.path / "adapters" / "README").read_text() == "mine"


def test_an_unfinished_creation_says_so(make: Maker, tmp_path: Path) -> None:
    from llm_unlearn.retrieval.database import Database

    path = tmp_path / "half"
    path.mkdir()
    (path / "config.yaml").write_text("version: 1\n")
    Database.open(path / "workspace.db", create=True).close()
    with pytest.raises(WorkspaceMissing, match="never finished"):
        Workspace.open(path)


def test_a_removed_subject_of_an_earlier_shard_is_not_found_twice(make: Maker) -> None:
    workspace = _ready(make)
    workspace.takedown(subject="author-1", probe=False)
    with pytest.raises(NotFound, match="No live document has the subject 'author-1'"):
        workspace.takedown(subject="author-1")


def test_a_legal_hold_is_kept_and_the_receipt_says_so(make: Maker) -> None:
    workspace = make()
    workspace.ingest([stored(1, "work"), stored(2, "work"), stored(3, "other")])
    workspace.opened.store.hold(id="work/s2")
    outcome = workspace.takedown(subject="work")
    assert outcome is not None
    assert outcome.receipt is not None
    receipt = workspace.verify(outcome.receipt).receipt
    assert receipt.outcome == "held"
    assert (receipt.done.documents_held, receipt.done.documents_deleted.store) == (1, 1)
    assert workspace.status().counts == {"held": 1, "store": 1}
    hits = workspace.opened.store.search("tale", groups={"staff"}, k=9)
    assert {hit.subject for hit in hits} == {"other"}


def test_a_receipt_cut_off_before_its_file_keeps_its_place_in_the_chain(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make()
    workspace.ingest(DOCUMENTS)

    def interrupted(*_arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine.receipts, "write_receipt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workspace.takedown(subject="work-0", probe=False)
    monkeypatch.undo()
    workspace.takedown(subject="work-1", probe=False)
    assert [state for _, state, _ in workspace.status().takedowns] == ["receipted"] * 2
    for receipt in sorted((workspace.path / "receipts").iterdir()):
        workspace.verify(receipt)
