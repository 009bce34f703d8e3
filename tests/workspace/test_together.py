"""Several processes over one workspace: they share the shards, and a takedown comes in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from small import Maker, answering_state, learned

from llm_unlearn import Workspace

DOCUMENTS = [learned(n, f"person-{n % 6}") for n in range(12)]


def _processes(folder: Path, code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


def test_two_processes_train_to_the_bytes_of_one(make: Maker) -> None:
    alone, together = make("alone"), make("together")
    for workspace in (alone, together):
        workspace.ingest(DOCUMENTS)
    one = alone.train()
    here: set[str] = set()

    def wait_for_the_other(label: str, _done: int, _total: int, _loss: float) -> None:
        """Hold this shard until the other process has finished a slice of the other shard."""
        here.add(label[:8])
        end = time.monotonic() + 120
        while {n[:8] for n in together.opened.checkpoints.listed()} <= here:
            assert time.monotonic() < end, "the other process trained nothing"
            time.sleep(0.05)

    two = together.train(processes=2, progress=wait_for_the_other)
    assert two.built == one.built
    assert here == {"shard-00"}
    assert answering_state(together) == answering_state(alone)


def test_how_many_help_decides_no_generation(make: Maker) -> None:
    """A subject alone in its shard calls for a helper that never-had has no use for."""
    workspace, never = make("ws"), make("never")
    vault, layout = workspace.opened.vault, workspace.opened.layout
    home = {f"p-{n}": layout.shard(vault.mark("subject", f"p-{n}")) for n in range(20)}
    alone = next(subject for subject, shard in home.items() if shard == 1)
    kept = [learned(n, s) for n, s in enumerate(home) if home[s] == 0][:2]
    late = learned(30, kept[0].subject)
    workspace.ingest([*kept, learned(40, alone)])
    never.ingest(kept)
    here: set[str] = set()

    def interfere(label: str, _done: int, _total: int, _loss: float) -> None:
        """Take in a document, then hold this shard until the other process has built the other."""
        if not here:
            with Workspace.open(workspace.path, models=workspace.opened.models) as other:
                other.ingest([late])
        here.add(label[:8])
        end = time.monotonic() + 600
        while {n[:8] for n in workspace.opened.checkpoints.listed()} <= here:
            assert time.monotonic() < end, "the other process trained nothing"
            time.sleep(0.05)

    workspace.train(processes=2, progress=interfere)
    never.train(processes=2)
    assert here == {"shard-00"}
    assert workspace.opened.ledger.generation == never.opened.ledger.generation == 2
    never.ingest([late])
    for each in (workspace, never):
        each.train(processes=2)
    workspace.takedown(subject=alone, probe=False)
    assert answering_state(workspace) == answering_state(never)


def test_a_launcher_of_processes_divides_the_shards(make: Maker, tmp_path: Path) -> None:
    """torch's own launcher, which `accelerate launch` uses too: the same bytes, each shard once."""
    alone, launched = make("alone", shards=4), make("launched", shards=4)
    for workspace in (alone, launched):
        workspace.ingest(DOCUMENTS)
    built = alone.train().built
    launched.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    train = ["-m", "llm_unlearn.cli", "train", str(launched.path), "--json"]
    keys = ["--keys", str(tmp_path / "launched-keys")]
    done = subprocess.run(
        [*command, *train, *keys], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Workspace.open(launched.path, keys=tmp_path / "launched-keys") as again:
        assert set(again.opened.checkpoints.listed()) == set(built)
        assert answering_state(again) == answering_state(alone)


def test_a_killed_process_gives_its_shard_to_another(make: Maker, tmp_path: Path) -> None:
    alone, shared = make("alone"), make("shared")
    for workspace in (alone, shared):
        workspace.ingest(DOCUMENTS)
    alone.train()
    code = f"""
import sys, time
from llm_unlearn import Workspace
def stop(label, done, total, loss):
    print("training", flush=True)
    time.sleep(600)
with Workspace.open({str(shared.path)!r}) as workspace:
    workspace.train(progress=stop)
"""
    with _processes(tmp_path, code) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "training\n"
        steps: list[str] = []
        killer = threading.Timer(2.0, other.send_signal, [signal.SIGKILL])
        killer.start()
        began = time.monotonic()
        shared.train(progress=lambda label, *_: steps.append(label))
        assert time.monotonic() - began > 1.9  # it waited for the shard that the other one held
        killer.join()
    assert {label[:8] for label in steps} == {"shard-00", "shard-01"}
    assert answering_state(shared) == answering_state(alone)


def test_a_takedown_is_accepted_while_its_shard_trains(make: Maker) -> None:
    workspace, never = make("ws"), make("never")
    workspace.ingest(DOCUMENTS)
    taken: list[str] = []

    def interfere(label: str, done: int, _total: int, _loss: float) -> None:
        if done == 3:
            record = workspace.opened.wanted()[int(label[6:8])][0].records[0]
            subject = workspace.opened.document(record).subject
            with Workspace.open(workspace.path) as other:
                other.takedown(subject=subject, probe=False)
            taken.append(subject)

    workspace.train(progress=interfere)
    never.ingest([d for d in DOCUMENTS if d.subject not in taken])
    never.train()
    assert len(taken) == 1
    assert answering_state(workspace) == answering_state(never)
