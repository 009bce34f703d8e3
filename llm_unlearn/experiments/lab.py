"""The adapters that are compared: taught, exactly deleted, retrained, and never-had.

Each side (one adapter over everything, or the affected shards of a sharded corpus) has two workspaces of
its own: one that learns everything and is then asked by `takedown` to delete, and one with the same
secrets that is built from the other documents alone. On one adapter over everything the first is naive
retraining; on shards it is SISA.

Guarantees: never-had shares nothing with the other but the recipe, the secrets and the base model; what
goes is the closure that a takedown would remove, the same on both sides; each piece is durable when done
and is not done again. The folder holds adapters in the clear: it is for experiments.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from llm_unlearn.config import Config
from llm_unlearn.documents import Document
from llm_unlearn.errors import NotFound, VerificationFailed
from llm_unlearn.experiments.problem import Problem
from llm_unlearn.experiments.settings import CompareConfig, Side
from llm_unlearn.files import os_errors, write_atomic
from llm_unlearn.opened import Models
from llm_unlearn.sisa.build import ShardState, shard_states, visits
from llm_unlearn.takedown.request import Request
from llm_unlearn.workspace import Workspace

State = Mapping[str, Tensor]
Told = Callable[[str], None]


@dataclass(frozen=True)
class Price:
    """Seconds of wall time and real tokens passed over; None where an interruption hid it."""

    seconds: float | None
    tokens: int | None


@dataclass(frozen=True)
class Built:
    """Adapters by shard (None is the base model alone), and what they cost."""

    adapters: Mapping[int, State | None]
    price: Price


@dataclass
class Lab:
    """Builds the adapters of one seed in a folder, each when first asked for.

    Args:
        models: shared by all workspaces.
        told: of each step that takes a while.
    """

    config: CompareConfig
    problem: Problem
    seed: int
    folder: Path
    models: Models
    told: Told = lambda _: None
    _gone: frozenset[str] | None = field(default=None, repr=False)

    def gone(self) -> frozenset[str]:
        """Ids of everything that goes: what was asked for, and its copies."""
        if self._gone is None:
            path = self.folder / "closure.json"
            if not path.is_file():
                with self._workspace("shard", "learned") as workspace:
                    workspace.ingest(self.problem.learned)
                    plan = workspace.plan_takedown(Request.internal(ids=self.problem.forget))
                    found = sorted(item.id for item in plan.removed)
                write_atomic(path, json.dumps(found).encode())
            self._gone = frozenset(json.loads(path.read_text(encoding="utf-8")))
        return self._gone

    def shards(self, side: Side) -> dict[str, int]:
        """By document id, the shard in which it is learned, for the shards that lose something."""
        if side == "monolith":
            return {d.id: 0 for d in self.problem.learned}
        path = self.folder / "places.json"
        if not path.is_file():
            gone = self.gone()
            with self._workspace(side, "learned") as workspace:
                opened = workspace.opened
                places = {
                    d.id: opened.layout.shard(opened.vault.mark("subject", d.subject))
                    for d in self.problem.learned
                }
            hit = {places[name] for name in gone}
            kept = {name: shard for name, shard in places.items() if shard in hit}
            write_atomic(path, json.dumps(kept).encode())
        found: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def taught(self, side: Side) -> Built:
        """With everything learned."""
        return self._kept(f"{side}-taught", lambda: self._learn(side, "learned"))

    def deleted(self, side: Side) -> Built:
        """After the takedown of what goes."""
        self.taught(side)
        return self._kept(f"{side}-deleted", lambda: self._delete(side))

    def never_had(self, side: Side) -> Built:
        """Built without what goes."""
        return self._kept(f"{side}-never-had", lambda: self._learn(side, "never-had"))

    def _learn(self, side: Side, which: str) -> Built:
        gone = self.gone() if which == "never-had" else frozenset()
        shards = sorted(set(self.shards(side).values()))
        self.told(f"seed {self.seed}, {side}: training {which}")
        with self._workspace(side, which) as workspace:
            workspace.ingest(d for d in self.problem.learned if d.id not in gone)
            began = time.monotonic()
            built = workspace.train(shards=shards).built
            seconds = round(time.monotonic() - began, 2)
            wanted = workspace.opened.wanted()
            fresh = shard_states({shard: wanted[shard] for shard in shards}, {})
            whole = len(built) == sum(len(s.missing) for s in fresh)
            tokens = _tokens(workspace, fresh)
            return Built(_serving(workspace, shards), Price(seconds if whole else None, tokens))

    def _delete(self, side: Side) -> Built:
        shards = sorted(set(self.shards(side).values()))
        self.told(f"seed {self.seed}, {side}: deleting and retraining")
        with self._workspace(side, "learned") as workspace:
            opened = workspace.opened
            earlier = opened.checkpoints.listed()
            began = time.monotonic()
            try:
                outcome = workspace.takedown(ids=self.problem.forget, probe=False)
                seconds: float | None = round(time.monotonic() - began, 2)
                if outcome is not None and outcome.waiting:
                    raise VerificationFailed(
                        f"The takedown on the {side} side deleted and did not retrain: "
                        f"{outcome.waiting}"
                    )
            except NotFound:  # an interrupted run had deleted them already
                workspace.resume()
                seconds = None
            wanted = opened.wanted()
            states = shard_states({shard: wanted[shard] for shard in shards}, earlier)
            tokens = None if seconds is None else _tokens(workspace, states)
            return Built(_serving(workspace, shards), Price(seconds, tokens))

    def _workspace(self, side: Side, which: str) -> Workspace:
        path = self.folder / f"{side}-{which}"
        keys = self.folder / f"{side}-{which}-keys"
        if (path / "workspace.db").is_file():
            return Workspace.open(path, keys=keys, models=self.models)
        secrets = {
            name: hashlib.sha256(f"compare {self.seed} {name}".encode()).digest()
            for name in ("ids", "placement")
        }
        return Workspace.create(
            path,
            keys=keys,
            config=workspace_config(self.config, self.seed, side),
            secrets=secrets,
            models=self.models,
        )

    def _kept(self, name: str, make: Callable[[], Built]) -> Built:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            built = make()
            tensors = {
                f"{shard}/{key}": tensor.contiguous()
                for shard, state in built.adapters.items()
                for key, tensor in (state or {}).items()
            }
            about = {
                "shards": json.dumps(sorted(built.adapters)),
                "seconds": json.dumps(built.price.seconds),
                "tokens": json.dumps(built.price.tokens),
            }
            write_atomic(path, safetensors.torch.save(tensors, about))
        with safe_open(path, framework="pt") as file:
            told = file.metadata()
        tensors = safetensors.torch.load_file(path)
        adapters: dict[int, State | None] = {}
        for shard in json.loads(told["shards"]):
            own = {k.partition("/")[2]: t for k, t in tensors.items() if k.startswith(f"{shard}/")}
            adapters[shard] = own or None
        return Built(adapters, Price(json.loads(told["seconds"]), json.loads(told["tokens"])))


def workspace_config(config: CompareConfig, seed: int, side: Side) -> Config:
    """A workspace that trains on all it is given; one shard and one slice for the monolith."""
    training = {**config.training.model_dump(), "seed": seed}
    if side == "monolith":
        training |= {"shards": 1, "slices": 1}
    rule = {"name": "experiment", "when": {"subject": ["*"]}, "then": "corpus"}
    # what only might be a copy stays: nobody is here to look at it
    copies: dict[str, object] = {"fence_flagged": False}
    if not config.closure:
        copies |= {"near_duplicate": 1.0, "noisy": 1.0, "containment": 1.0}
        copies |= {"quotation_words": 100_000}
    return Config.model_validate(
        {
            "model": config.model,
            "embedder": config.embedder,
            "separation": {"rules": [rule]},
            "training": training,
            "takedown": copies,
        }
    )


def lab(
    config: CompareConfig, problem: Problem, seed: int, out: Path, models: Models, told: Told
) -> Lab:
    """The lab of one seed, in a folder of its own."""
    folder = out / "work" / f"seed-{seed}"
    with os_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return Lab(config, problem, seed, folder, models, told)


def split(documents: Iterable[Document], gone: frozenset[str]) -> tuple[list[Document], ...]:
    """Documents that go, and documents that stay."""
    pair: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        pair[document.id not in gone].append(document)
    return pair


def _serving(workspace: Workspace, shards: Sequence[int]) -> dict[int, State | None]:
    opened = workspace.opened
    return {s.shard: opened.adapter(s) for s in opened.states() if s.shard in shards}


def _tokens(workspace: Workspace, states: Sequence[ShardState]) -> int:
    """Real tokens that building the missing slices passes over."""
    opened = workspace.opened
    sizes: dict[bytes, int] = {}
    total = 0
    for state in states:
        for records, passes in visits(state, opened.training):
            for record in records:
                if record.handle not in sizes:
                    sizes[record.handle] = sum(len(e.ids) for e in opened.examples(record))
                total += passes * sizes[record.handle]
    return total
