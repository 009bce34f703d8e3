"""Correcting a document: never both, never neither, through any crash; never-had afterwards."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import Maker, answering_state, learned, stored

from llm_unlearn import Workspace
from llm_unlearn.cli import main
from llm_unlearn.errors import InputError, NotFound

OTHERS = [stored(n, "author-1") for n in range(3)] + [
    learned(n, f"writer-{n % 2}") for n in range(4)
]
OLD = stored(9, "author-2")
NEW = OLD.model_copy(
    update={"id": "author-2/s9.2", "text": str(OLD.text).replace("A tale", "A true tale")}
)

_CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from small import *
from llm_unlearn import Workspace
from llm_unlearn.retrieval.vault import Vault

new = Document.model_validate_json({new!r})
with Workspace.open({path!r}) as workspace:
    def at(state):
        if state == {stop!r}:
            os.kill(os.getpid(), signal.SIGKILL)
    if {stop!r} == "staged":
        change = Vault.set_state
        def dies(vault, handles, state):
            change(vault, handles, state)  # inside the transaction, which never commits
            if state == "live":
                os.kill(os.getpid(), signal.SIGKILL)
        Vault.set_state = dies
    workspace.correct({old!r}, [new], on_state=at, probe=False)
"""


def _serving(workspace: Workspace) -> set[str]:
    """Ids that retrieval gives back, from a fresh look."""
    hits = workspace.opened.store.search("a tale of author-2", groups={"staff"}, k=50)
    return {hit.document for hit in hits if hit.document in (OLD.id, NEW.id)}


def test_the_new_one_serves_and_nothing_of_the_old_is_left(make: Maker) -> None:
    workspace, never = make("ws"), make("never")
    workspace.ingest([*OTHERS, OLD])
    workspace.train()
    told: list[tuple[str, set[str]]] = []
    done = workspace.correct(
        OLD.id, [NEW], probe=False, on_state=lambda s: told.append((s, _serving(workspace)))
    )
    assert done is not None
    assert done.fates == {NEW.id: "store"}
    assert [state for state, _ in told] == [
        "fenced", "deleted", "disposed", "retrained", "receipted",
    ]  # fmt: skip
    assert all(found == {NEW.id} for _, found in told)
    never.ingest(OTHERS)
    never.train()
    never.ingest([NEW])
    assert answering_state(workspace) == answering_state(never)
    assert done.outcome.receipt is not None
    assert workspace.verify(done.outcome.receipt).receipt.done.documents_deleted.store == 1
    # the old text stays out, the new one is known, and can be corrected again
    report = workspace.ingest([OLD, NEW])
    assert [p.decision.rule for p in report.placed if not p.known] == ["tombstone"]
    again = NEW.model_copy(update={"id": "author-2/s9.3", "text": f"{NEW.text} Really."})
    workspace.correct(NEW.id, [again], probe=False)
    assert _serving(workspace) == set()
    assert workspace.where(again.id).fate == "store"
    with pytest.raises(InputError, match="text was taken down"):
        workspace.correct(again.id, [OLD.model_copy(update={"id": "back"})], probe=False)


def test_what_is_learned_is_learned_anew(make: Maker) -> None:
    old = learned(2, "writer-0")
    new = old.model_copy(
        update={"id": "writer-0/2.2", "messages": learned(2, "writer-0", "x").messages}
    )
    workspace, never = make("ws"), make("never")
    workspace.ingest(OTHERS)
    workspace.train()
    done = workspace.correct(old.id, [new], probe=False)
    assert done is not None
    assert done.fates == {new.id: "corpus"}
    never.ingest([d for d in OTHERS if d.id != old.id])
    never.train()
    never.ingest([new])
    never.train()
    assert answering_state(workspace) == answering_state(never)
    assert not any(state.missing for state in workspace.opened.states())


@pytest.mark.parametrize("stop", ["staged", "fenced"])
def test_killed_anywhere_one_and_only_one_serves(make: Maker, tmp_path: Path, stop: str) -> None:
    """This process has the workspace open all along, as a server would."""
    workspace = make("ws")
    workspace.ingest([*OTHERS[:3], OLD])
    code = _CHILD.format(
        paths=sys.path,
        path=str(workspace.path),
        old=OLD.id,
        new=NEW.model_dump_json(),
        stop=stop,
    )
    died = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert died.returncode == -signal.SIGKILL
    expected = {OLD.id} if stop == "staged" else {NEW.id}
    assert _serving(workspace) == expected
    workspace.resume()
    assert _serving(workspace) == expected
    slots = workspace.opened.keyring.live_slots()
    assert len(slots) == len(workspace.opened.vault.records()) == 4
    if stop != "staged":
        assert workspace.status().takedowns[0][1] == "receipted"


def _unchanged(workspace: Workspace, before: dict[str, bytes]) -> None:
    assert answering_state(workspace) == before
    assert not workspace.opened.vault.records(states=("staged", "fenced"))
    assert not workspace.status().takedowns


def test_what_cannot_be_corrected_changes_nothing(make: Maker) -> None:
    workspace = make("ws")
    workspace.ingest([*OTHERS[:3], OLD])
    before = answering_state(workspace)
    with pytest.raises(InputError, match="id of its own"):
        workspace.correct(OLD.id, [NEW.model_copy(update={"id": OLD.id})])
    with pytest.raises(InputError, match="is taken"):
        workspace.correct(OLD.id, [NEW.model_copy(update={"id": OTHERS[0].id})])
    with pytest.raises(InputError, match="policy refuses"):
        workspace.correct(OLD.id, [NEW.model_copy(update={"tags": ("bad",)})])
    with pytest.raises(InputError, match="at least one"):
        workspace.correct(OLD.id, [])
    with pytest.raises(NotFound):
        workspace.correct("nobody", [NEW])
    assert workspace.correct(OLD.id, [NEW], confirm=lambda plan: False) is None
    _unchanged(workspace, before)

    def fails(state: str) -> None:
        raise RuntimeError(state)

    with pytest.raises(RuntimeError, match="fenced"):  # accepted: the new one stays
        workspace.correct(OLD.id, [NEW], on_state=fails, probe=False)
    assert _serving(workspace) == {NEW.id}


def test_the_command(make: Maker, tmp_path: Path) -> None:
    workspace = make("ws")
    workspace.ingest([*OTHERS[:3], OLD])
    path, keys = workspace.path, workspace.opened.keyring.directory
    workspace.close()
    file = tmp_path / "new.jsonl"
    file.write_text(NEW.model_dump_json(exclude_defaults=True) + "\n")
    given = [
        "correct",
        path,
        "--keys",
        keys,
        "--id",
        OLD.id,
        "--file",
        file,
        "--no-probe",
        "--json",
    ]

    def call(*more: str) -> tuple[int, str]:
        quiet = contextlib.redirect_stderr(io.StringIO())
        with contextlib.redirect_stdout(io.StringIO()) as out, quiet:
            code = main([os.fspath(each) for each in (*given, *more)])
        return code, out.getvalue()

    assert call()[0] == 2  # nobody is here to confirm
    code, said = call("--yes")
    assert code == 0
    assert f'"{NEW.id}": "store"' in said
    assert call("--yes")[0] in (3, 4)  # it is done
