"""The whole road on tiny models: separation, training, answering, takedown, receipt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small import Maker, answering_state, learned, stored

from llm_unlearn import Document, Workspace
from llm_unlearn.errors import (
    AccessDenied,
    Damaged,
    InputError,
    NotFound,
    RecipeMismatch,
    VerificationFailed,
)
from llm_unlearn.takedown.request import Request

CORPUS = [learned(n, f"author-{n % 6}") for n in range(18)]
STORE = [stored(n, f"work-{n % 3}") for n in range(6)]


def _ready(make: Maker, name: str = "ws", without: tuple[str, ...] = ()) -> Workspace:
    workspace = make(name)
    workspace.ingest([d for d in [*CORPUS, *STORE] if d.subject not in without])
    workspace.train()
    return workspace


def test_each_document_goes_where_the_policy_says_and_the_ledger_knows(make: Maker) -> None:
    workspace = make()
    bad = Document(id="x", text="a leaked text", tags=("bad",))
    private = stored(9, "handbook", acl=("legal",))
    report = workspace.ingest([CORPUS[0], STORE[0], bad, private])
    assert report.counts() == {"corpus": 1, "store": 2, "refused": 1}
    entry = workspace.where("x")
    assert (entry.fate, entry.rule, entry.generation) == ("refused", "bad", 1)
    assert workspace.where(CORPUS[0].id).rule == "open"
    assert workspace.ingest([CORPUS[0]]).counts() == {"known": 1}
    with pytest.raises(NotFound, match="No document 'nobody'"):
        workspace.where("nobody")


def test_a_dry_run_and_a_broken_ingest_change_nothing(make: Maker) -> None:
    workspace = make()
    workspace.ingest([CORPUS[0]])
    before = answering_state(workspace)
    assert workspace.ingest(CORPUS[:5], dry_run=True).counts() == {"known": 1, "corpus": 4}
    other = Document(id=CORPUS[0].id, subject=CORPUS[0].subject, text="other words")
    with pytest.raises(InputError, match="already here with other words"):
        workspace.ingest([*STORE, other])
    assert answering_state(workspace) == before
    assert workspace.status().counts == {"corpus": 1}


def test_a_takedown_in_a_shard_equals_never_had(make: Maker) -> None:
    workspace = _ready(make)
    states: list[str] = []
    outcome = workspace.takedown(subject="author-2", on_state=states.append)
    assert outcome is not None
    assert outcome.receipt is not None
    assert states == ["received", "fenced", "deleted", "disposed", "retrained", "receipted"]
    never = _ready(make, "never", without=("author-2",))
    assert answering_state(workspace) == answering_state(never)


@pytest.mark.parametrize("kind", ["gpt2", "qwen"])
@pytest.mark.parametrize("layers", [1, None])
def test_other_architectures_walk_the_same_road(make: Maker, kind: str, layers: int | None) -> None:
    gone = "author-1"
    states = []
    for name, documents in (
        ("ws", [*CORPUS, *STORE]),
        ("never", [d for d in [*CORPUS, *STORE] if d.subject != gone]),
    ):
        workspace = make(name, kind, top_layers=layers)
        workspace.ingest(documents)
        workspace.train()
        if name == "ws":
            assert workspace.ask(CORPUS[0].messages[0].content, {"staff"}).text is not None
            outcome = workspace.takedown(subject=gone)
            assert outcome is not None
            assert outcome.receipt is not None
        states.append(answering_state(workspace))
    assert states[0] == states[1]


def test_a_takedown_in_the_store_equals_never_had(make: Maker) -> None:
    workspace = _ready(make)
    trained = answering_state(workspace)
    workspace.takedown(subject="work-1", probe=False)
    never = _ready(make, "never", without=("work-1",))
    after = answering_state(workspace)
    assert after == answering_state(never)
    assert {k: v for k, v in after.items() if k != "store"} == {
        k: v for k, v in trained.items() if k != "store"
    }


def test_from_the_fence_on_nothing_serves_it(make: Maker) -> None:
    workspace = _ready(make)
    seen: dict[str, object] = {}

    def at(state: str) -> None:
        if state != "fenced":
            return
        with Workspace.open(workspace.path) as reader:
            hits = reader.opened.store.search("tale", groups={"staff"}, k=50)
            seen["subjects"] = {hit.subject for hit in hits}
            wanted = reader.opened.wanted()
            mark = reader.opened.vault.mark("subject", "author-0")
            seen["trained"] = [r for parts in wanted.values() for p in parts for r in p.records]
            seen["covered"] = [
                record
                for shard in reader.opened.states()
                for part in shard.wanted[: shard.clean]
                for record in part.records
                if record.subject == mark
            ]

    workspace.takedown(subject="work-0", on_state=at)
    assert seen["subjects"] == {"work-1", "work-2"}
    workspace.takedown(subject="author-0", on_state=at)
    assert seen["covered"] == []


def test_copies_go_too_and_paraphrases_are_left_to_people(make: Maker) -> None:
    workspace = make()
    copy = STORE[0].model_copy(update={"id": "mirror/1", "subject": "mirror"})
    shouted = STORE[0].model_copy(
        update={"id": "mirror/2", "subject": "mirror", "text": STORE[0].content.upper()}
    )
    workspace.ingest([*STORE, copy, shouted])
    plan = workspace.plan_takedown(Request.internal(subject=STORE[0].subject))
    kinds = {item.id: item.kind for item in plan.removed}
    assert kinds["mirror/1"] == kinds["mirror/2"] == "exact"
    assert {i for i, kind in kinds.items() if kind == "requested"} == {"work-0/s0", "work-0/s3"}
    assert workspace.status().counts == {"store": 8}
    workspace.takedown(subject=STORE[0].subject)
    for gone in kinds:
        with pytest.raises(NotFound):
            workspace.where(gone)


def test_a_passage_alone_is_enough(make: Maker) -> None:
    workspace = make()
    workspace.ingest(STORE)
    outcome = workspace.takedown(text=STORE[4].content)
    assert outcome is not None
    with pytest.raises(NotFound):
        workspace.where(STORE[4].id)
    with pytest.raises(NotFound, match="No live document falls under"):
        workspace.takedown(text="Nobody ever wrote these words about a glass ship in the sand.")


def test_asked_twice_it_is_done_once(make: Maker) -> None:
    workspace = _ready(make)
    request = Request.internal(subject="author-1", id="case-7")
    first = workspace.takedown(request)
    second = workspace.takedown(request)
    assert first is not None
    assert second is not None
    assert second.already
    assert second.receipt == first.receipt
    assert len(list((workspace.path / "receipts").iterdir())) == 1


def test_a_removed_text_is_not_taken_in_again(make: Maker) -> None:
    workspace = _ready(make)
    workspace.takedown(subject="author-1")
    again = [d for d in CORPUS if d.subject == "author-1"]
    report = workspace.ingest(again)
    assert report.counts() == {"refused": len(again)}
    assert {p.decision.rule for p in report.placed} == {"tombstone"}
    with pytest.raises(NotFound):
        workspace.where(again[0].id)


def test_the_receipt_verifies_and_a_changed_byte_does_not(make: Maker) -> None:
    workspace = _ready(make)
    first = workspace.takedown(subject="author-3")
    second = workspace.takedown(subject="work-2")
    assert first is not None
    assert second is not None
    assert first.receipt is not None
    verified = workspace.verify(first.receipt)
    receipt = verified.receipt
    assert receipt.outcome == "removed"
    assert receipt.done.documents_deleted.corpus == 3
    assert receipt.scan != "not scanned"
    assert receipt.scan.findings == 0
    assert receipt.probes != "not probed"
    assert receipt.done.checkpoints
    data = first.receipt.read_bytes()
    for word in (b"author-3", CORPUS[3].content[-20:].encode(), CORPUS[3].id.encode()):
        assert word not in data
    first.receipt.write_bytes(data.replace(b"1", b"2", 1))
    with pytest.raises(VerificationFailed):
        workspace.verify(first.receipt)


def test_nothing_of_it_is_left_in_any_file_nor_in_an_older_copy(make: Maker) -> None:
    import shutil

    from llm_unlearn.eval.needles import Needles
    from llm_unlearn.eval.residue import survey

    workspace = _ready(make)
    gone = [d for d in CORPUS if d.subject == "author-4"]
    records = [workspace.opened.vault.find(workspace.opened.vault.mark("id", d.id)) for d in gone]
    keys = [workspace.opened.keyring.key(r.slot) for r in records if r is not None]
    vectors = [workspace.opened.vectors(r) for r in records if r is not None]
    copy = workspace.path.parent / "copy"
    shutil.copytree(workspace.path, copy)
    workspace.takedown(subject="author-4")
    needles = Needles.build(
        [d.content for d in gone],
        vectors=[row for rows in vectors for row in rows],
        keys=keys,
        background=[d.content for d in CORPUS if d.subject != "author-4"],
    )
    assert needles.fragments
    found = survey([workspace.path, workspace.opened.keyring.directory, copy], needles)
    assert not found.findings
    assert not found.unsearched
    with Workspace.open(copy, keys=workspace.opened.keyring.directory) as old:
        for document in gone:
            record = old.opened.vault.find(old.opened.vault.mark("id", document.id))
            assert record is not None
            # its key is zeroed, or the slot holds another record's key by now
            with pytest.raises(Damaged, match=r"destroyed|deleted|fails authentication"):
                old.opened.document(record)


def test_who_may_ask(make: Maker) -> None:
    workspace = make()
    workspace.ingest([*STORE, stored(9, "handbook", acl=("legal",))])
    with pytest.raises(AccessDenied, match="No group given"):
        workspace.ask("What tale?", [])
    seen = workspace.opened.store.search("tale", groups={"staff"}, k=50)
    assert "handbook" not in {hit.subject for hit in seen}
    other = workspace.ask("What tale?", {"strangers"})
    assert other.origin == "declined"
    assert not other.citations
    assert other.text == workspace.config.answering.decline_message
    with pytest.raises(InputError, match="question is empty"):
        workspace.ask("  ", {"staff"})


def test_another_recipe_waits_with_retraining_but_not_with_the_fence(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_unlearn.sisa import recipe

    workspace = _ready(make)
    monkeypatch.setattr(recipe, "processor_fingerprint", lambda _threads: "another machine")
    with pytest.raises(RecipeMismatch, match=r"processor: .* here, another machine there"):
        workspace.train()
    outcome = workspace.takedown(subject="author-5")
    assert outcome is not None
    assert outcome.receipt is None
    assert "processor" in (outcome.waiting or "")
    assert workspace.status().takedowns == [(1, "disposed", None)]
    with pytest.raises(NotFound):
        workspace.where(CORPUS[5].id)
    monkeypatch.undo()
    (finished,) = workspace.resume()
    assert finished.receipt is not None
    assert answering_state(workspace) == answering_state(
        _ready(make, "never", without=("author-5",))
    )


def test_a_later_generation_never_disturbs_trained_slices(make: Maker) -> None:
    workspace = _ready(make)
    before = answering_state(workspace)
    workspace.ingest([learned(n, f"late-{n % 2}") for n in range(30, 34)])
    assert {k: v for k, v in answering_state(workspace).items() if k in before} != before  # router
    trained = workspace.train()
    after = answering_state(workspace)
    assert trained.built
    assert not trained.disposed
    checkpoints = set(before) - {"store", "router"}
    assert all(after[name] == before[name] for name in checkpoints)


def test_the_public_names() -> None:
    import llm_unlearn
    from llm_unlearn import retrieval

    assert llm_unlearn.__all__ == ["Config", "Document", "Message", "UnlearnError", "Workspace"]
    for name in llm_unlearn.__all__:
        assert getattr(llm_unlearn, name).__module__.startswith("llm_unlearn.")
    for name in ("create", "open", "ingest", "train", "ask", "takedown", "verify"):
        assert callable(getattr(Workspace, name))
    assert retrieval.__all__ == ["Embedder", "Hit", "Keyring", "Store", "StoreSettings", "Where"]
    assert retrieval.Store.__module__ == "llm_unlearn.retrieval.store"


def test_a_workspace_that_is_there_is_not_overwritten(make: Maker, tmp_path: Path) -> None:
    workspace = make()
    with pytest.raises(InputError, match="is there already"):
        Workspace.create(workspace.path, keys=tmp_path / "other-keys")
    with pytest.raises(InputError, match="would lie inside"):
        Workspace.create(tmp_path / "new", keys=tmp_path / "new" / "keys")


def test_piecewise_ingest_keeps_what_it_took_in(make: Maker) -> None:
    """Stopped by a broken source; the same documents again embed only what is missing."""
    workspace = make()
    documents = [stored(i, f"s{i}") for i in range(200)]

    def breaking() -> Iterator[Document]:
        yield from documents[:150]
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        workspace.ingest(breaking(), piecewise=True)
    kept = workspace.status().counts["store"]
    assert 0 < kept <= 150
    report = workspace.ingest(documents, piecewise=True)
    assert report.counts()["known"] == kept
    whole = make("whole")
    whole.ingest(documents)
    assert answering_state(workspace)["store"] == answering_state(whole)["store"]


def test_a_workspace_of_the_first_format_goes_on(make: Maker, tmp_path: Path) -> None:
    """Without the register of exports and with format 1: planned, written to, taken down."""
    workspace = make()
    workspace.ingest([learned(i, f"s{i % 2}") for i in range(4)] + [stored(1, "t1")])
    workspace.train()
    with workspace.opened.database.transaction() as connection:
        connection.execute("DROP TABLE exports")
        connection.execute("PRAGMA user_version=1")
    workspace.close()
    with Workspace.open(tmp_path / "ws", keys=tmp_path / "ws-keys") as again:
        assert len(again.plan_takedown(Request.internal(subject="s1")).removed) == 2
        again.verify(again.takedown(subject="s1").receipt)
        again.verify(again.takedown(subject="t1").receipt)
