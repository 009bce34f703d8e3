"""The command line as a user meets it: real processes on tiny random models.

One workspace is prepared for the folder by the commands themselves; tests work on copies of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DOCUMENTS: list[dict[str, Any]] = [
    {
        "id": f"{subject}-{number}",
        "text": text,
        "subject": subject,
        "source": f"{subject}.txt",
        "license": license,
    }
    for subject, license, texts in (
        (
            "morrow",
            "cc0",
            [
                "The keeper of Morrow Point counted every gull that came to the rail.",
                "At Morrow Point the lamp was trimmed at four and again at eleven.",
            ],
        ),
        (
            "quill",
            "cc0",
            [
                "Ada Quill wrote eleven novels about clocks and wound each one by hand.",
                "The last novel of Ada Quill ends in the middle of a minute.",
            ],
        ),
        ("sable", "cc0", ["Sable bread is baked on slate and eaten before the tide is in."]),
        (
            "harbour",
            "all-rights-reserved",
            [
                "The song of the tin harbour has nine verses, and the fourth of them is sung "
                "only when the boats are late and nobody on the quay will say so.",
                "A second song of the harbour is whistled, for it never had any words.",
            ],
        ),
        (
            "collector",
            "all-rights-reserved",
            [
                "The song of the tin harbour has nine verses, and the fifth of them is sung "
                "only when the boats are late and nobody on the quay will say so.",
            ],
        ),
    )
    for number, text in enumerate(texts)
] + [
    {"id": f"{trade}-0", "text": f"A {trade} lives at the end of {trade} lane.", "license": "cc0"}
    for trade in ("baker", "cooper", "dyer", "fuller", "glover", "miller", "saddler")
]
DOCUMENTS.append({"id": "recipe-0", "text": "How to brew the grey powder.", "tags": ["hazardous"]})

# No rule asks for personal data: its detector takes seconds to load.
RULES = (
    "[{name: hazardous, when: {tags: [hazardous]}, then: refused}, "
    "{name: open-licence, when: {license: [cc0]}, then: corpus}]"
)
SETTINGS = {
    "separation.rules": RULES,
    "training.shards": 1,
    "training.slices": 2,
    "training.epochs": 4,
    "training.top_layers": 2,
    "training.threads": 1,
    "training.dtype": "float32",
    "answering.max_new_tokens": 8,
    "takedown.fence_flagged": "false",  # to a random embedder everything is alike
}


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output; nothing else may be there."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    def refused(self, code: int, *words: str) -> None:
        """One line on standard error that says these words, no traceback, nothing on output."""
        lines = self.err.splitlines()
        assert self.code == code, self
        assert len(lines) == 1, self
        assert lines[0].startswith("error: "), self
        assert "Traceback" not in self.err
        for word in words:
            assert word in lines[0], (word, lines[0])
        assert not self.out


@dataclass(frozen=True)
class Cli:
    """Runs `python -m llm_unlearn.cli` with the packages of the test process."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(
        self, *arguments: object, before: Sequence[object] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command; `before` is put in front of it, such as a wrapper."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
            **self.environment,
        }
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | options
        return subprocess.Popen(
            [*map(str, before), sys.executable, "-m", "llm_unlearn.cli", *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
            **options,
        )

    def __call__(self, *arguments: object, **options: Any) -> Done:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=120)
        return Done(process.returncode, out or "", err)


@dataclass(frozen=True)
class Place:
    """A workspace and its keys."""

    workspace: Path
    keys: Path

    @property
    def arguments(self) -> tuple[object, ...]:
        """What commands need to find it."""
        return self.workspace, "--keys", self.keys

    def copy(self, folder: Path) -> Place:
        """Both, copied; a copy knows its keys only by `--keys`."""
        shutil.copytree(self.workspace, folder / "ws")
        shutil.copytree(self.keys, folder / "keys")
        return Place(folder / "ws", folder / "keys")

    def files(self) -> dict[str, bytes]:
        """Every byte of both, but for the lock and SQLite's files beside an open database."""
        passing = {"lock", "workspace.db-shm", "workspace.db-wal"}
        return {
            str(path): path.read_bytes()
            for folder in (self.workspace, self.keys)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in passing
        }

    def state(self) -> dict[str, Any]:
        """What it holds, decrypted: documents, checkpoints, takedowns, receipts."""
        from llm_unlearn.takedown.journal import Journal
        from llm_unlearn.workspace import Workspace

        with Workspace.open(self.workspace, keys=self.keys, readonly=True) as opened:
            pieces = opened.opened
            vault = pieces.vault
            documents = {
                record.handle.hex(): (
                    record.fate,
                    record.state,
                    record.generation,
                    [_digest(vault.read(record, part)) for part in vault.part_names(record)],
                )
                for record in vault.records(states=("live", "fenced", "held"))
            }
            listed = pieces.checkpoints.listed()
            return {
                "documents": documents,
                "checkpoints": {n: pieces.checkpoints.digest(listed[n]) for n in listed},
                "takedowns": [
                    (row.number, row.state)
                    for row in Journal(pieces.database, pieces.keyring).filed()
                ],
                "receipts": {
                    path.name: path.read_bytes()
                    for path in sorted(self.workspace.glob("receipts/*"))
                },
                "config": (self.workspace / "config.yaml").read_bytes(),
            }


@dataclass(frozen=True)
class Prepared:
    """The workspace that the commands made, before and after training, and what they said.

    `shared` is a learned subject that another one shares a slice with, which is trained again
    without it: of three subjects in two slices there must be one.
    """

    trained: Place
    untrained: Place
    said: dict[str, Done]
    shared: str


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_documents(path: Path, documents: Sequence[Mapping[str, Any]]) -> Path:
    """Documents as JSONL."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_references: dict[str, str]) -> Prepared:
    """Made by init, ingest and train."""
    folder = tmp_path_factory.mktemp("prepared")
    cli = Cli(folder)
    source = write_documents(folder / "documents.jsonl", DOCUMENTS)
    place = Place(folder / "ws", folder / "keys")
    settings = {
        **SETTINGS,
        "model": tiny_references["llama"],
        "embedder": tiny_references["embedder"],
    }
    chosen = [f"--set={name}={value}" for name, value in settings.items()]
    said = {"init": cli("init", *place.arguments, *chosen, "--json")}
    said["ingest"] = cli("ingest", *place.arguments, source, "--json", "--each")
    (folder / "before").mkdir()
    untrained = place.copy(folder / "before")
    said["train"] = cli("train", *place.arguments, "--json")
    for name, done in said.items():
        assert done.code == 0, (name, done)
    return Prepared(place, untrained, said, _shared(place))


def _shared(place: Place) -> str:
    from llm_unlearn.takedown.request import Request
    from llm_unlearn.workspace import Workspace

    with Workspace.open(place.workspace, keys=place.keys, readonly=True) as opened:
        for subject in ("morrow", "quill", "sable"):
            plan = opened.plan_takedown(Request.internal(subject=subject))
            if any(work.retrained for work in plan.shards):
                return subject
    raise AssertionError("three subjects in two slices")


@pytest.fixture
def place(prepared: Prepared, tmp_path: Path) -> Place:
    """A trained workspace of the test's own."""
    return prepared.trained.copy(tmp_path)


@pytest.fixture
def untrained(prepared: Prepared, tmp_path: Path) -> Place:
    """The same before training."""
    return prepared.untrained.copy(tmp_path)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs commands in the test's own directory."""
    return Cli(tmp_path)


@pytest.fixture
def documents() -> Callable[[Path, Sequence[Mapping[str, Any]]], Path]:
    """Writes documents as JSONL."""
    return write_documents


@pytest.fixture(scope="session")
def corpus() -> list[dict[str, Any]]:
    """The documents of the prepared workspace."""
    return DOCUMENTS
