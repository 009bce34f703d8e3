"""`forget` and `bench forget`: from a workspace's adapter, from any model, and what they refuse."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pieces import documents
from small import SECRETS, answering_state, tiny_config

from llm_unlearn import Workspace
from llm_unlearn.cli import main

ONE = {"epochs": 2, "batch-size": 1, "threads": 1, "dtype": "float32", "target": "1e-9"}
FEW = [f"--{key}={value}" for key, value in ONE.items()] + ["--utility-floor=0"]


@dataclass(frozen=True)
class Said:
    """A command that has ended, in this process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, code: int, *words: str) -> None:
        """One line that says these words, and nothing on output."""
        lines = self.err.splitlines()
        assert (self.code, len(lines), self.out) == (code, 1, ""), self
        assert all(word in lines[0] for word in words), (words, lines)


def call(*arguments: object) -> Said:
    """Run the command line here: a process for each would take seconds."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two documents to forget, three to keep."""
    made = []
    for name, part in (("forget", documents(5)[:2]), ("retain", documents(5)[2:])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(d.model_dump_json(exclude_defaults=True) + "\n" for d in part))
        made.append(path)
    return made[0], made[1]


@pytest.fixture(scope="module")
def trained(
    tiny_references: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("forget")
    config = tiny_config(tiny_references, shards=1)
    with Workspace.create(
        folder / "ws", keys=folder / "keys", config=config, secrets=SECRETS
    ) as workspace:
        workspace.ingest(documents(4))
        workspace.train()
        yield workspace


def test_a_subject_of_a_workspace_and_nothing_in_it_changes(
    trained: Workspace, tmp_path: Path
) -> None:
    place = (trained.path, "--keys", trained.public_key.parent)
    before = answering_state(trained)
    names = sorted(trained.path.rglob("*"))
    given = ["forget", *place, "--subject", "SUBJECT-1", *FEW, "-m", "graddiff", "--json", "-o"]
    done = call(*given, tmp_path / "out")
    assert done.code == 0, done
    assert done.json["verdict"] in ("partly", "forgotten")
    assert done.json["texts"] == {"forget": 1, "retain": 3, "utility": 0}
    assert done.json["start"] != done.json["end"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record == {key: value for key, value in done.json.items() if key != "out"}
    assert "subject-1" not in json.dumps(record).lower()  # the record names nobody
    assert answering_state(trained) == before
    assert sorted(trained.path.rglob("*")) == names
    assert call(*given, tmp_path / "again").json["end"] == done.json["end"]
    assert "holds" in call(*given, tmp_path / "out").json["error"]["problem"]
    inside = trained.path / "adapters" / "mine"
    call("forget", *place, "-s", "subject-1", "-o", inside).refused(3, "lies inside")
    beside = trained.public_key.parent / "mine"
    call("forget", *place, "-s", "subject-1", "-o", beside).refused(3, "lies inside")
    call("forget", *place, "-s", "nobody", "-o", tmp_path / "x").refused(4, "'nobody'")
    assert not inside.exists()
    assert not beside.exists()
    assert not (tmp_path / "x").exists()


def test_what_is_fenced_or_deleted_is_not_read(
    tiny_references: dict[str, str], tmp_path: Path
) -> None:
    config = tiny_config(tiny_references, shards=1)
    with Workspace.create(tmp_path / "ws", keys=tmp_path / "keys", config=config) as workspace:
        workspace.ingest(documents(3))
        workspace.train()
        workspace.takedown(subject="subject-1", probe=False)
        gone = call(
            *("forget", workspace.path, "--keys", tmp_path / "keys", "-s", "subject-1"),
            *("-o", tmp_path / "out"),
        )
        gone.refused(4, "subject-1")
        kept = call(
            *("forget", workspace.path, "--keys", tmp_path / "keys", "-s", "subject-2"),
            *("-o", tmp_path / "out", "--json", *FEW),
        )
        assert kept.json["texts"] == {"forget": 1, "retain": 1, "utility": 0}


def test_any_model_with_files_and_a_sweep(
    tiny_references: dict[str, str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    gone, kept = files
    shared = ["--model", tiny_references["gpt2"], "--forget", gone, "--retain", kept, *FEW]
    done = call("forget", *shared, "-o", tmp_path / "a", "-m", "npo", "--set", "beta=0.2", "--json")
    assert done.code == 0, done
    assert done.json["method_settings"]["beta"] == 0.2
    whole = call("forget", *shared, "-o", tmp_path / "b", "--full", "--top-layers", 1, "-m", "ga")
    assert whole.code == 0, whole
    assert "This is no takedown" in whole.out
    assert (tmp_path / "b" / "model.safetensors").is_file()
    swept = call("forget", *shared, "-o", tmp_path / "c", "-m", "ga", "--sweep", "1,2", "--json")
    assert [point["strength"] for point in swept.json["points"]] == [1.0, 2.0]
    assert (tmp_path / "c" / "frontier.svg").read_text().startswith("<svg")


def test_what_is_refused_before_a_model_loads(files: tuple[Path, Path], tmp_path: Path) -> None:
    gone, kept = files
    out = tmp_path / "out"
    call("forget", "--model", "m", "--forget", gone).refused(2, "--out DIR")
    call("forget", "-o", out).refused(2, "workspace", "--model")
    call("forget", "ws", "-o", out).refused(2, "--subject")
    call("forget", "ws", "-s", "a", "--full", "-o", out).refused(2, "--full")
    call("forget", "--model", "m", "-o", out).refused(2, "--forget")
    given = ["--forget", gone, "--retain", kept, "-o", out]
    call("forget", "--model", "m", *given, "-m", "oblivion").refused(3, "'oblivion'", "npo")
    call("forget", "--model", "m", *given, "--set", "beta").refused(2, "KEY=VALUE")
    call("forget", "--model", "m", *given, "--sweep", "a").refused(2, "0.5,1,2")
    call("forget", "--model", "m", *given, "--learning-rate", 1).refused(3, "learning_rate", "0.1")
    call("forget", "--model", "/nowhere/m", *given).refused(9, "/nowhere/m")
    assert not out.exists()


def test_a_run_that_wrecks_ends_with_8_and_no_weights(
    tiny_references: dict[str, str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    gone, kept = files
    out = tmp_path / "out"
    done = call(
        *("forget", "--model", tiny_references["llama"], "--forget", gone, "--retain", kept),
        *("-o", out, "-m", "ga", "--json", "--threads", 1, "--dtype", "float32"),
        *("--learning-rate", 1e-3, "--strength", 3, "--utility-floor", 0.9999, "--target", "1e-9"),
    )
    assert done.code == 8, done
    assert done.json["verdict"] == "failed"
    assert "lost utility" in done.err
    assert [p.name for p in out.iterdir()] == ["record.json"]


def test_the_bench_of_one_step(tiny_references: dict[str, str]) -> None:
    done = call(
        *("bench", "forget", "--model", tiny_references["llama"], "--top-layers", 2),
        *("--batch", 1, "--steps", 1, "--dtype", "float32", "--threads", 1, "--json"),
    )
    assert done.code == 0, done
    assert [row["method"] for row in done.json["methods"]] == ["graddiff", "npo"]
    assert all(row["ratio"] > 0 for row in done.json["methods"])
    call("bench", "forget", "--dtype", "int3").refused(3, "int3")
