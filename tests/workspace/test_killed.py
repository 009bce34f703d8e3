"""SIGKILL at every journal step and at random moments: the takedown ends in never-had all the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from killing import DOCUMENTS, GONE, Prepared, check_finished, prepare
from small import Maker, answering_state, stored

from llm_unlearn import Workspace

KILLS = int(os.environ.get("SOAK", "3"))

_CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from llm_unlearn import Workspace
from llm_unlearn.takedown.request import Request

with Workspace.open({path!r}) as workspace:
    def at(state):
        print(state, flush=True)
        if state == {stop!r}:
            os.kill(os.getpid(), signal.SIGKILL)
    workspace.takedown(Request.internal(subject="author-1", id="case"), on_state=at, probe=False)
    print("done", flush=True)
"""


def _run(workspace: Path, stop: str = "", after: float | None = None) -> Sequence[str]:
    """Run the takedown in a process that dies at a state, or some seconds after the fence."""
    code = _CHILD.format(paths=sys.path, path=str(workspace), stop=stop)
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=workspace.parent
    )
    lines = []
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line.strip())
            if after is not None and lines[-1] == "received":
                time.sleep(after)
                child.send_signal(signal.SIGKILL)
    return lines


@pytest.fixture(scope="module")
def prepared(tiny_references: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tiny_references, tmp_path_factory)


def _check(workspace: Workspace, never_had: dict[str, bytes]) -> None:
    """Resume, as any next write does, and compare; no trace is left, whenever it was killed."""
    mark = workspace.opened.vault.mark("subject", GONE)
    assert not workspace.opened.vault.records(subject=mark)
    workspace.resume()
    check_finished(workspace, never_had)


@pytest.mark.parametrize(
    "state", ["received", "fenced", "deleted", "disposed", "retrained", "receipted"]
)
def test_killed_at_each_state_it_ends_the_same(
    prepared: Prepared, tmp_path: Path, state: str
) -> None:
    """This process has the workspace open all along, as a server would while a script deletes."""
    with prepared.copy(tmp_path / "ws") as workspace:
        assert _run(workspace.path, stop=state)[-1] == state
        _check(workspace, prepared.never_had)


def test_killed_at_random_moments_it_ends_the_same(prepared: Prepared, tmp_path: Path) -> None:
    moments = random.Random(7)
    for number in range(KILLS):
        with prepared.copy(tmp_path / f"run-{number}") as workspace:
            assert _run(workspace.path, after=moments.random() * 0.6)[0] == "received"
            _check(workspace, prepared.never_had)


def test_two_writers_in_turn_take_no_key_twice(prepared: Prepared, tmp_path: Path) -> None:
    """Each looks again at which key slots are free when its turn to write comes."""
    with prepared.copy(tmp_path / "ws") as first:
        first.ingest([stored(20, "early")])
        with Workspace.open(first.path, models=prepared.models) as second:
            second.ingest([stored(21, "other")])
            first.ingest([stored(22, "late")])
            for workspace in (first, second):
                found = {
                    h.subject for h in workspace.opened.store.search("x", groups={"staff"}, k=50)
                }
                assert {"early", "other", "late"} <= found
                workspace.opened.store.verify()


def test_killed_while_ingesting_nothing_is_half_there(
    make: Maker, tiny_references: dict[str, str], tmp_path: Path
) -> None:
    workspace = make("ws")
    workspace.ingest(DOCUMENTS[:2])
    before = answering_state(workspace)
    code = f"""
import sys, os, signal
sys.path[:0] = {sys.path!r}
from small import learned
from llm_unlearn import Workspace
with Workspace.open({str(workspace.path)!r}) as workspace:
    def endless():
        for n in range(100, 400):
            if n == 300:
                os.kill(os.getpid(), signal.SIGKILL)
            yield learned(n, f"late-{{n}}")
    workspace.ingest(endless())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert workspace.status().counts == {"corpus": 2}
    workspace.resume()
    assert answering_state(workspace) == before
    assert len(workspace.opened.keyring.live_slots()) == 2


def test_an_interrupted_training_goes_on_to_the_same_bytes(make: Maker) -> None:
    whole, workspace = make("whole"), make("ws")
    whole.ingest(DOCUMENTS)
    whole.train()
    workspace.ingest(DOCUMENTS)

    def interrupt(_label: str, done: int, total: int, _loss: float) -> None:
        if done == (2 * total) // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.train(progress=interrupt)
    left = len(workspace.opened.checkpoints.listed())
    assert 0 < left < len(whole.opened.checkpoints.listed())
    assert len(workspace.train().built) == len(whole.opened.checkpoints.listed()) - left
    assert answering_state(workspace) == answering_state(whole)


def test_processes_with_other_threads_hash_seeds_and_orders_agree(
    make: Maker, tiny_references: dict[str, str], tmp_path: Path
) -> None:
    """The recipe pins what decides bits; the ambient process decides nothing."""
    here = make("here")
    here.ingest(DOCUMENTS)
    here.train()
    for number, threads in ((1, "1"), (2, "2")):
        path = tmp_path / f"there-{number}"
        code = f"""
import sys, random
sys.path[:0] = {sys.path!r}
from pathlib import Path
from small import SECRETS, tiny_config
from killing import DOCUMENTS
from llm_unlearn import Workspace
documents = list(DOCUMENTS)
random.Random({number}).shuffle(documents)
path = Path({str(path)!r})
config = tiny_config({tiny_references!r})
with Workspace.create(path, keys=str(path) + "-keys", config=config, secrets=SECRETS) as workspace:
    workspace.ingest(documents)
    workspace.train()
"""
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": str(number)}
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
        with Workspace.open(path) as there:
            assert answering_state(there) == answering_state(here)
