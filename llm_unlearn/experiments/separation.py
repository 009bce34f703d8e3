"""The trade-off that the project is named for: the same documents in the store, in adapters, or in both.

Every answer of the documents is worded in a house style, which retrieval cannot carry to other questions
and training can. Measured for each arm: right answers, style on questions about other things, what the
weights alone give back, whose text is shown to the model at inference, and what a deletion costs.

Guarantees: one set of documents, questions and secrets for all arms; each arm in each seed is a cell that
is durable when done. In `both`, every other subject is stored and the rest learned. Style is counted by a
marker word, right answers by keys; a small model reads passages worse than a large one would.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm_unlearn.answering import make_answerer
from llm_unlearn.config import Config
from llm_unlearn.documents import Document, Message
from llm_unlearn.eval.encoding import encode_chats
from llm_unlearn.eval.knowledge import holds_keys
from llm_unlearn.eval.memorization import extraction_strength, verbatim_probability
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.eval.summary import bootstrap
from llm_unlearn.experiments.cells import Cell, claim, kept
from llm_unlearn.experiments.problem import DATA, answer, paraphrase, question
from llm_unlearn.experiments.settings import SeparationConfig
from llm_unlearn.files import write_atomic
from llm_unlearn.forget.result import versions
from llm_unlearn.opened import Models
from llm_unlearn.readers import read_documents
from llm_unlearn.sisa.recipe import pin_threads
from llm_unlearn.workspace import Workspace

Arm = Literal["store", "adapters", "both"]
ARMS: tuple[Arm, ...] = ("store", "adapters", "both")
MARK = "Harken"
COLUMNS = (
    ("right", "right answers about the documents"),
    ("other subjects right", "right answers to general questions"),
    ("style carried", "house style on general questions"),
    ("weights: probability", "of the documents' answers, without the store"),
    ("weights: extraction", "extraction strength of the same"),
    ("text shown", "answers made with a document's text before the model"),
    ("others' text shown", "passages shown that are not of the document asked about"),
    ("right after deletion", "about what was deleted"),
    ("fenced, s", "from the request until no answer draws on it"),
    ("deleted, s", "until the receipt, retraining included"),
    ("answer, s", "mean time of an answer"),
)
Told = Callable[[str], None]


@dataclass(frozen=True)
class Separation:
    """One cell for each arm and seed, and what the run was about."""

    config: SeparationConfig
    cells: tuple[Cell, ...]
    about: dict[str, Any]


def separation(config: SeparationConfig, out: Path, *, told: Told = lambda _: None) -> Separation:
    """Run what is missing and return all of it.

    Raises:
        InputError: the folder holds something else.
    """
    every = list(read_documents(DATA / "hazard.jsonl"))
    known = [d for d in every if {"hazard", "harmless"} & set(d.tags)]
    chosen = list(dict.fromkeys(d.subject for d in known))[: config.subjects]
    documents = [styled(d, chosen.index(d.subject)) for d in known if d.subject in chosen]
    general = [d for d in every if "general" in d.tags]
    models = Models(_config(config, config.seeds[0], "store"))
    pin_threads(config.training.threads)
    text = b"".join(d.model_dump_json().encode() for d in (*documents, *general))
    about: dict[str, Any] = {
        "documents": len(documents),
        "data": hashlib.sha256(text).hexdigest(),
        "model digest": models.base_digest,
        "versions": versions(),
    }
    claim(out, {"schema": 1, "config": config.model_dump(mode="json", exclude={"seeds"}), **about})
    cells = []
    for seed in config.seeds:
        for arm in ARMS:
            make = partial(_measure, config, arm, seed, documents, general, models, out, told)
            cells.append(kept(out, seed, "separation", arm, None, make))
    return Separation(config, tuple(cells), about)


def styled(document: Document, place: int) -> Document:
    """The document in house style, tagged with where it goes when both are used."""
    said = f"{MARK}: {answer(document)} So say the gulls."
    turns = (document.messages[0], Message(role="assistant", content=said))
    tag = "stored" if place % 2 == 0 else "learned"
    return document.model_copy(update={"messages": turns, "tags": (tag,)})


def _config(config: SeparationConfig, seed: int, arm: Arm) -> Config:
    learned = {"tags": ["stored", "learned"] if arm == "adapters" else ["learned"]}
    rules = [] if arm == "store" else [{"name": "learned", "when": learned, "then": "corpus"}]
    return Config.model_validate(
        {
            "model": config.model,
            "embedder": config.embedder,
            "training": {**config.training.model_dump(), "seed": seed},
            "answering": {**config.answering.model_dump(), "fallback": "base"},
            "separation": {"default": "store", "rules": rules},
            "takedown": {"fence_flagged": False},  # nobody is here to look at what may be a copy
        }
    )


def _measure(
    config: SeparationConfig,
    arm: Arm,
    seed: int,
    documents: Sequence[Document],
    general: Sequence[Document],
    models: Models,
    out: Path,
    told: Told,
) -> Cell:
    told(f"seed {seed}: {arm}")
    folder = out / "work" / f"{seed}-{arm}"
    if folder.exists():  # an interrupted arm begins anew: its times would mean nothing
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    secrets = {
        name: hashlib.sha256(f"separation {seed} {name}".encode()).digest()
        for name in ("ids", "placement")
    }
    values: dict[str, list[float]] = {}
    with Workspace.create(
        folder / "ws",
        keys=folder / "keys",
        config=_config(config, seed, arm),
        secrets=secrets,
        models=models,
    ) as workspace:
        workspace.ingest(documents)
        workspace.train()
        opened = workspace.opened
        groups = (workspace.config.retrieval.default_group,)
        began = time.monotonic()
        asker = make_answerer(opened, workspace.config.answering)
        answers = asker.ask([question(d) for d in documents], groups)
        values["answer, s"] = [(time.monotonic() - began) / len(documents)]
        values["right"] = _right(documents, [a.text for a in answers])
        values["text shown"] = [float(bool(a.citations)) for a in answers]
        values["others' text shown"] = [
            float(np.mean([hit.document != d.id for hit in a.citations])) if a.citations else 0.0
            for a, d in zip(answers, documents, strict=True)
        ]
        plain = asker.ask([question(d) for d in general], groups)
        values["other subjects right"] = _right(general, [a.text for a in plain])
        # whoever answers everything shows what was carried over to other questions
        open_to_all = workspace.config.answering.model_copy(update={"route_threshold": -1.0})
        asked = make_answerer(opened, open_to_all).ask([question(d) for d in general], groups)
        values["style carried"] = [float(holds_keys(a.text, [MARK])) for a in asked]
        probability, extraction = _weights(workspace, documents)
        values["weights: probability"], values["weights: extraction"] = probability, extraction
        _delete(workspace, arm, documents, values)
    return Cell(side="separation", name=arm, kind="arm", seed=seed, values=values)


def _right(documents: Sequence[Document], answers: Sequence[str]) -> list[float]:
    keys = [paraphrase(d).removeprefix("That would be ").removesuffix(".") for d in documents]
    return [float(holds_keys(a, [k])) for a, k in zip(answers, keys, strict=True)]


def _weights(
    workspace: Workspace, documents: Sequence[Document]
) -> tuple[list[float], list[float]]:
    """What weights give back alone: of each document the adapter of its shard, else the base model."""
    opened = workspace.opened
    host = opened.models.host
    listed = opened.checkpoints.listed()
    serving = {s.shard: s.serving for s in opened.states()}
    probability, extraction = [], []
    for document in documents:
        record = opened.vault.find(opened.vault.mark("id", document.id))
        shard = opened.shard_of(record) if record is not None and record.fate == "corpus" else None
        part = None if shard is None else serving.get(shard)
        adapter = None if part is None else opened.checkpoints.load(listed[part.name]).adapter
        encoded = encode_chats(host.base.tokenizer, [(question(document), answer(document))])
        with host.using(adapter):
            (scores,) = score_encoded(host.model, encoded)
        probability.append(verbatim_probability(scores))
        extraction.append(extraction_strength(scores))
    return probability, extraction


def _delete(
    workspace: Workspace, arm: Arm, documents: Sequence[Document], values: dict[str, list[float]]
) -> None:
    """Take down the first subject of each kind; in `both` one that is stored and one that is learned."""
    subjects = list(dict.fromkeys(d.subject for d in documents))[: 2 if arm == "both" else 1]
    for subject in subjects:
        began = time.monotonic()
        fenced: list[float] = []

        def state(_name: str, began: float = began, fenced: list[float] = fenced) -> None:
            fenced.append(time.monotonic() - began)

        workspace.takedown(subject=subject, probe=False, on_state=state)
        values.setdefault("fenced, s", []).append(fenced[0])
        values.setdefault("deleted, s", []).append(time.monotonic() - began)
        gone = [d for d in documents if d.subject == subject]
        groups = (workspace.config.retrieval.default_group,)
        answers = workspace.ask_many([question(d) for d in gone], groups)
        right = _right(gone, [a.text for a in answers])
        values.setdefault("right after deletion", []).extend(right)


def summary(found: Separation) -> dict[str, Any]:
    """Of each arm every column, mean and standard error over seeds, or over texts with one seed."""
    arms: dict[str, Any] = {}
    for arm in ARMS:
        cells = [c for c in found.cells if c.name == arm]
        row = {}
        for column, _ in COLUMNS:
            means = [float(np.mean(c.values[column])) for c in cells]
            values = means if len(means) > 1 else cells[0].values[column]
            made = bootstrap(values, rounds=1)
            error = made.standard_error if len(values) > 1 else None
            row[column] = {"mean": made.mean, "standard_error": error, "n": made.n}
        arms[arm] = row
    return {
        "schema": 1,
        "kind": "separation",
        "config": found.config.model_dump(mode="json"),
        "about": found.about,
        "arms": arms,
    }


def markdown(plain: Mapping[str, Any]) -> str:
    """One table: a column an arm."""
    arms = plain["arms"]
    lines = [
        "| | what | " + " | ".join(arms) + " |",
        "| " + " | ".join("---" for _ in range(len(arms) + 2)) + " |",
    ]
    for column, meaning in COLUMNS:
        cells = [_cell(arms[arm][column]) for arm in arms]
        lines.append(f"| {column} | {meaning} | " + " | ".join(cells) + " |")
    seeds = len(plain["config"]["seeds"])
    over = f"{seeds} seeds" if seeds > 1 else "texts (one seed)"
    return "\n".join([*lines, "", f"± standard error over {over}.", ""])


def _cell(value: Mapping[str, float | None]) -> str:
    error = value["standard_error"]
    return f"{value['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def write(plain: Mapping[str, Any], out: Path) -> None:
    """Write `table.md` and `result.json`."""
    write_atomic(out / "result.json", (json.dumps(plain, indent=1) + "\n").encode(), mode=0o644)
    write_atomic(out / "table.md", markdown(plain).encode(), mode=0o644)
