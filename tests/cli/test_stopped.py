"""Stopped half-way: Ctrl-C, a full disk, a recipe that differs. The workspace opens and goes on."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# A shell says 130 for both. Python ends itself by the signal, although the program has handled it,
# when it came while an `exec` of a string ran, such as the making of a dataclass in an import.
STOPPED = (130, -signal.SIGINT)


def interrupt(process: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[str, str]:
    """Send a real SIGINT as soon as `ready` holds; returns what was printed."""
    deadline = time.monotonic() + 100
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)


def test_ctrl_c_in_ingest_takes_nothing_in(
    cli: Any, place: Any, documents: Any, tmp_path: Path
) -> None:
    """It comes when the first batch is staged: the write-ahead log has grown."""
    before = place.state()
    many = [
        {"id": f"many-{i}", "text": f"Text {i} of very many. " + "It goes on. " * 20}
        for i in range(3000)
    ]
    source = documents(tmp_path / "many.jsonl", many)
    log = place.workspace / "workspace.db-wal"
    process = cli.start("ingest", *place.arguments, source)
    out, err = interrupt(process, lambda: log.exists() and log.stat().st_size > 100_000)
    assert process.returncode in STOPPED, err
    assert out == ""
    assert err.splitlines() == [
        "error: Stopped. The workspace opens, and nothing accepted is lost."
    ]
    assert place.state() == before
    assert cli("status", *place.arguments, "--json").json["counts"]["store"] == 3
    cli("where", *place.arguments, "many-0").refused(4, "many-0")


def test_ctrl_c_in_train_keeps_what_is_built(cli: Any, untrained: Any) -> None:
    """It comes when the first checkpoint is listed; that one can be read and serves."""
    before = untrained.state()
    config = untrained.workspace / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 4", "epochs: 120"))
    database = f"{(untrained.workspace / 'workspace.db').as_uri()}?mode=ro"
    listed = sqlite3.connect(database, uri=True, isolation_level=None)
    process = cli.start("train", *untrained.arguments)
    with contextlib.closing(listed):
        count = "SELECT count(*) FROM checkpoints"
        out, err = interrupt(process, lambda: listed.execute(count).fetchone() != (0,))
    assert process.returncode in STOPPED, err
    assert out == ""
    assert [line.startswith("error: Stopped.") for line in err.splitlines()] == [True]
    said = cli("status", *untrained.arguments, "--json").json
    assert said["counts"] == {"store": 3, "corpus": 12, "refused": 1}
    assert [(shard["clean"], shard["state"]) for shard in said["shards"]] == [(1, "rolled back")]
    after = untrained.state()
    assert after["documents"] == before["documents"]
    assert len(after["checkpoints"]) == 1


def test_ctrl_c_in_a_takedown_leaves_the_fence_and_resume_finishes(
    cli: Any, place: Any, prepared: Any
) -> None:
    """It comes after "disposed", while retraining begins."""
    chosen = ("--subject", prepared.shared)
    process = cli.start("takedown", *place.arguments, *chosen, "--yes", "--no-probe")
    seen: list[str] = []

    def disposed() -> bool:
        seen.append(process.stderr.readline())
        return seen[-1].startswith("disposed")

    _, err = interrupt(process, disposed)
    assert process.returncode in STOPPED, (seen, err)
    assert "Traceback" not in err
    assert "accepted and no answer draws on the text" in err
    assert f"llm-unlearn resume {place.workspace}" in err
    said = cli("status", *place.arguments, "--json").json
    assert said["takedowns"] == [[1, "disposed", None]]
    cli("where", *place.arguments, f"{prepared.shared}-0").refused(4)
    assert "llm-unlearn resume" in cli("status", *place.arguments).out

    done = cli("resume", *place.arguments, "--json")
    assert done.code == 0, done
    (finished,) = done.json["takedowns"]
    assert finished["state"] == "receipted"
    verified = cli(
        "verify", finished["receipt"], "--key", finished["public_key"], "--request",
        finished["reference"], "--json",
    )  # fmt: skip
    assert verified.json["receipt"]["done"]["documents_deleted"]["corpus"] > 0


def test_a_takedown_under_another_recipe_waits_behind_its_fence(
    cli: Any, place: Any, prepared: Any, corpus: Any, tmp_path: Path
) -> None:
    """Retraining would compute other bits here: it says so and ends with 5; the text is gone.

    The demand gives a passage, and what holds it goes.
    """
    config = place.workspace / "config.yaml"
    other = config.read_text().replace("learning_rate: 0.002", "learning_rate: 0.001")
    config.write_text(other)
    name = f"{prepared.shared}-0"
    passage = tmp_path / "passage.txt"
    passage.write_text(next(d["text"].upper() for d in corpus if d["id"] == name))
    run = ("takedown", *place.arguments, "--text", passage, "--yes", "--no-probe", "--json")
    done = cli(*run)
    assert done.code == 5, done
    assert done.json["state"] == "disposed"
    assert done.json["receipt"] is None
    assert "learning_rate" in done.json["waiting"]
    last = done.err.splitlines()[-1]
    assert last.startswith("error: Takedown 1 waits")
    assert "--retrain-all" in last
    assert [d["id"] for d in done.json["plan"]["removed"]] == [name]
    cli("where", *place.arguments, name).refused(4, name)
    assert cli("status", *place.arguments, "--json").json["takedowns"] == [[1, "disposed", None]]


_FULL = """
set -e
disk=$1 content=$2 after=$3 free=$4
shift 4
mount -t tmpfs -o size=16m tmpfs "$disk"
cp -a "$content"/. "$disk"
available=$(df --output=avail -B1 "$disk" | tail -1)
head -c $((available - free)) /dev/zero > "$disk/filling"
code=0
"$@" || code=$?
rm "$disk/filling"
cp -a "$disk"/. "$after"
exit $code
"""


class SmallDisk:
    """A directory on a disk with few bytes free.

    As root a real one: a tmpfs in a mount namespace of the command's own, whose content is copied
    in before and out after. Where that is not allowed no file may grow beyond so many bytes
    (RLIMIT_FSIZE), which the system refuses in much the same way.
    """

    def __init__(self, cli: Any, folder: Path) -> None:
        self.cli = cli
        self.path = folder / "disk"
        self.content = folder / "content"
        for directory in (self.path, self.content):
            directory.mkdir()
        mount = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(self.path)]
        self.mounts = (
            shutil.which("unshare")
            and not subprocess.run(mount, capture_output=True, check=False).returncode
        )

    def run(self, free: int, *command: object) -> Any:
        """Run a command with `free` bytes left; `content` then holds what the disk held."""
        if not self.mounts:
            return self._run_limited(free, *command)
        after = self.content.with_name("after")
        after.mkdir()
        places = [str(path) for path in (self.path, self.content, after)]
        done = self.cli(*command, before=["unshare", "-m", "sh", "-c", _FULL, "sh", *places, free])
        shutil.rmtree(self.content)
        after.rename(self.content)
        return done

    def _run_limited(self, free: int, *command: object) -> Any:
        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))

        self.path.rmdir()
        self.content.rename(self.path)
        done = self.cli(*command, preexec_fn=limit)
        self.path.rename(self.content)
        self.path.mkdir()
        return done


@pytest.fixture
def disk(cli: Any, tmp_path: Path) -> SmallDisk:
    """An empty one."""
    return SmallDisk(cli, tmp_path)


@pytest.mark.parametrize("limited", [False, True])
def test_a_full_disk_at_init(cli: Any, disk: SmallDisk, limited: bool, tmp_path: Path) -> None:
    """Nothing stands in the way of doing it again."""
    disk.mounts = disk.mounts and not limited
    free = 2_000 if limited else 12_000
    done = disk.run(free, "init", disk.path / "ws", "--keys", disk.path / "keys")
    done.refused(9, str(disk.path), "disk full")
    again = ("init", disk.content / "ws", "--keys", disk.content / "keys")
    assert cli(*again).code == 0


def test_a_full_disk_at_ingest(
    cli: Any, disk: SmallDisk, place: Any, documents: Any, tmp_path: Path
) -> None:
    before = place.state()
    place.workspace.rename(disk.content / "ws")
    many = [
        {"id": f"many-{i}", "text": f"Text {i} of many. " + "It goes on. " * 90} for i in range(66)
    ]
    source = documents(tmp_path / "many.jsonl", many)
    done = disk.run(100_000, "ingest", disk.path / "ws", "--keys", place.keys, source)
    done.refused(9, "workspace.db")
    (disk.content / "ws").rename(place.workspace)
    assert place.state() == before


def test_a_full_disk_at_train(cli: Any, disk: SmallDisk, untrained: Any) -> None:
    """No checkpoint is listed, no part of a file stays, no document is touched."""
    before = untrained.state()
    untrained.workspace.rename(disk.content / "ws")
    done = disk.run(60_000, "train", disk.path / "ws", "--keys", untrained.keys)
    done.refused(9, "disk full")
    (disk.content / "ws").rename(untrained.workspace)
    assert untrained.state() == before
    assert not list(untrained.workspace.glob("adapters/*"))
