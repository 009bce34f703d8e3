"""Chosen methods, exact deletion, naive retraining and never-had: same documents, probes and prices.

Guarantees: every row of a side is measured by one function on the same texts, which are part of a
cell's name, so that no table mixes rows that were asked otherwise; exact rows must equal
never-had, which was built by itself, in every value to the last bit, and the result says whether they do;
a run that was interrupted goes on with the first piece that is missing. Rows of words and guards carry
what their unchanged weights still give back.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError, NoEffect
from llm_unlearn.eval.benchmarks.tofu import forget_quality
from llm_unlearn.experiments import fronts
from llm_unlearn.experiments.cells import Cell, claim, kept
from llm_unlearn.experiments.finding import find
from llm_unlearn.experiments.lab import Built, Lab, lab, split, workspace_config
from llm_unlearn.experiments.probes import Asked, Prober
from llm_unlearn.experiments.problem import Problem, load, spread
from llm_unlearn.experiments.settings import CompareConfig, Front, MethodConfig, Side
from llm_unlearn.files import write_atomic
from llm_unlearn.forget import job
from llm_unlearn.forget.methods import method as method_named
from llm_unlearn.forget.result import versions
from llm_unlearn.forget.run import run as forget
from llm_unlearn.forget.weights import digest
from llm_unlearn.opened import Models
from llm_unlearn.sisa.recipe import pin_threads

EXACT: Mapping[Side, str] = {"monolith": "naive retraining", "shard": "SISA deletion"}
Told = Callable[[str], None]
_NOTHING = {"verdict": "partly", "stop": "no effect", "steps": 0, "seconds": 0.0, "tokens": 0}


@dataclass(frozen=True)
class Comparison:
    """All cells, and what the run was about."""

    config: CompareConfig
    cells: tuple[Cell, ...]
    about: dict[str, Any]

    def of(self, side: str, name: str) -> list[Cell]:
        """One row's cells, one a seed."""
        return [c for c in self.cells if (c.side, c.name) == (side, name)]

    def rows(self) -> list[tuple[str, str]]:
        """Side and name of each row, in the order of the table."""
        return list(dict.fromkeys((c.side, c.name) for c in self.cells))

    def unequal(self) -> list[str]:
        """Where exact deletion differs from never-had: row, seed and what differs; empty if nowhere."""
        found = []
        for cell in self.cells:
            if cell.kind != "exact":
                continue
            (never,) = (c for c in self.of(cell.side, "never-had") if c.seed == cell.seed)
            names = sorted({*cell.values, *never.values})
            differ = [n for n in names if cell.values.get(n) != never.values.get(n)]
            if cell.weights != never.weights:
                differ.append("weights")
            found += [f"{cell.side}, {cell.name}, seed {cell.seed}: {name}" for name in differ]
        return found


def compare(
    config: CompareConfig, out: Path, *, home: Path | None = None, told: Told = lambda _: None
) -> Comparison:
    """Run what is missing and return all of it.

    Args:
        out: a new folder, or one where this comparison was begun.
        home: where the data's relative paths count from.

    Raises:
        InputError: the data do not fit, or the folder holds something else.
    """
    problem = load(config, home or Path())
    forget_quality([0.0, 1.0], [0.0, 1.0])  # its package is missed now, not in the last hour
    models = Models(workspace_config(config, config.seeds[0], "monolith"))
    pin_threads(config.training.threads)
    about: dict[str, Any] = {
        "data": _inputs(problem),
        "documents": len(problem.learned),
        "asked to forget": len(problem.forget),
        "model digest": models.base_digest,
        "versions": versions(),
    }
    decides = config.without_paths("methods", "fronts", "seeds", "sides")
    claim(out, {"schema": 1, "config": decides, **about})
    cells: list[Cell] = []
    for seed in config.seeds:
        own = lab(config, problem, seed, out, models, told)
        for side in config.sides:
            cells += _Bench(config, problem, own, side, out, told).cells()
        about.setdefault("gone", {})[str(seed)] = len(own.gone())
        if problem.planted and "shard" in config.sides:
            about.setdefault("finding", {})[str(seed)] = _finding(own, told)
        about.setdefault("shards touched", {})[str(seed)] = len(set(own.shards("shard").values()))
    order = list(dict.fromkeys((c.side, c.name) for c in cells))
    cells.sort(key=lambda c: (order.index((c.side, c.name)), c.seed))
    return Comparison(config, tuple(cells), about)


class _Bench:
    """One side of one seed."""

    def __init__(
        self, config: CompareConfig, problem: Problem, own: Lab, side: Side, out: Path, told: Told
    ) -> None:
        self.config, self.problem, self.lab, self.side = config, problem, own, side
        self.out, self.told = out, told
        self.gone, self.kept = split(problem.learned, own.gone())
        self.places = own.shards(side)
        self.asked = self._asked()
        self._prober: Prober | None = None
        bare = set(self.places.values()) - {self.places.get(d.id) for d in self.kept}
        if bare and config.methods:
            raise InputError(
                f"In seed {own.seed}, shard {min(bare)} learned nothing but what goes: methods have "
                "nothing to keep there.",
                "Choose fewer shards (training.shards), other seeds, or sides: [monolith].",
            )

    def cells(self) -> list[Cell]:
        found = [
            self._cell("taught", "taught", lambda: self._built(self.lab.taught)),
            self._cell("never-had", "never-had", lambda: self._built(self.lab.never_had)),
            self._cell(EXACT[self.side], "exact", lambda: self._built(self.lab.deleted)),
        ]
        for chosen in self.config.methods:
            decides = chosen.model_dump(mode="json")
            make = partial(self._approximate, chosen)
            found.append(self._cell(chosen.label, "approximate", make, decides))
        for name in self.config.fronts:
            found.append(self._cell(name, "front", partial(self._front, name, found[0])))
        return found

    def _cell(
        self, name: str, kind: str, make: Callable[[], dict[str, Any]], decides: Any = None
    ) -> Cell:
        seed = self.lab.seed

        def made() -> Cell:
            self.told(f"seed {seed}, {self.side}: {name}")
            return Cell(side=self.side, name=name, kind=kind, seed=seed, **make())

        of = (self.asked.forget, self.asked.retain, *self.asked.general.values())
        texts = [[d.id for d in group] for group in (*of, self.asked.strangers)]
        return kept(self.out, seed, self.side, name, [decides, texts], made)

    def _asked(self) -> Asked:
        sample, problem = self.config.probes.sample, self.problem
        # what both sides have learned, where there are two
        side: Side = "shard" if "shard" in self.config.sides else self.side
        learned_there = self.lab.shards(side)
        return Asked(
            forget=spread(self.gone, sample),
            retain=spread([d for d in self.kept if d.id in learned_there], sample),
            general={name: spread(g, sample) for name, g in problem.general.items()},
            strangers=spread(problem.strangers, sample),
            choices=problem.choices,
            attacks=problem.attacks,
            places=self.places,
        )

    @property
    def prober(self) -> Prober:
        if self._prober is None:
            config = self.config
            self._prober = Prober(
                self.lab.models.host, self.asked, config.probes, config.training.max_tokens
            )
        return self._prober

    def _built(self, make: Callable[[Side], Built]) -> dict[str, Any]:
        built = make(self.side)
        return {
            "values": self.prober.measure(built.adapters),
            "weights": _digests(built.adapters),
            "seconds": built.price.seconds,
            "tokens": built.price.tokens,
        }

    def _approximate(self, chosen: MethodConfig) -> dict[str, Any]:
        """Run a method on each adapter that has something to forget."""
        training, seed = self.config.training, self.lab.seed
        settings = job.settings(
            {
                **self.config.forgetting,
                **chosen.run,
                "strength": chosen.strength,
                "seed": seed,
                "max_tokens": training.max_tokens,
                "dtype": training.dtype,
                "threads": training.threads,
            }
        )
        how = method_named(chosen.name, chosen.settings)
        host = self.lab.models.host
        adapters, runs, places = {}, [], []
        seconds, tokens = 0.0, 0
        for shard, start in sorted(self.lab.taught(self.side).adapters.items()):
            if start is None:
                raise AssertionError("a shard that loses something has learned something")
            texts = job.Texts(self._in(shard, self.gone), self._in(shard, self.kept))
            aim = job.Target(host, dict(start))
            began = time.monotonic()
            material = job.material(aim, how, texts, settings)  # altpo makes its answers up here
            seconds += time.monotonic() - began
            place = self.lab.folder / f"{self.side}-{chosen.label.replace(' ', '-')}-{shard}.part"
            places.append(place)
            try:
                done = forget(host, start, how, material, settings, resume=place)
            except NoEffect as error:  # a row like another: it forgot nothing
                self.told(f"seed {seed}, {self.side}: {chosen.label}, shard {shard}: {error}")
                adapters[shard] = dict(start)
                runs.append({"shard": shard, **_NOTHING, "method": chosen.name, "why": str(error)})
                continue
            adapters[shard] = done.state
            record = done.record
            seconds, tokens = seconds + record.seconds, tokens + record.tokens
            runs.append(
                {
                    "shard": shard,
                    "method": record.method,
                    "citation": record.citation,
                    "method_settings": record.method_settings,
                    "settings": record.settings.model_dump(mode="json"),
                    "verdict": record.verdict,
                    "stop": record.stop,
                    "steps": record.steps,
                    "target": record.target,
                    "report": record.report,
                    "seconds": record.seconds,
                    "tokens": record.tokens,
                }
            )
        values = self.prober.measure(adapters)
        for place in places:
            place.unlink(missing_ok=True)
        return {
            "values": values,
            "weights": _digests(adapters),
            "seconds": round(seconds, 2),
            "tokens": tokens,
            "runs": runs,
        }

    def _front(self, name: Front, taught: Cell) -> dict[str, Any]:
        """Ask through it; what reads weights finds those that were taught."""
        probes = self.config.probes
        asking = fronts.front(
            name,
            self.lab.models.embedder,
            self.gone,
            spread(self.kept, probes.context),
            topic=self.problem.topic,
            context=probes.context,
            threshold=probes.guard,
        )
        asked = self.prober.measure(self.lab.taught(self.side).adapters, asking)
        asked.pop("forget score")
        return {"values": {**taught.values, **asked}, "weights": taught.weights}

    def _in(self, shard: int, documents: Sequence[Document]) -> list[Document]:
        return [d for d in documents if self.places.get(d.id) == shard]


def _finding(own: Lab, told: Told) -> dict[str, Any]:
    """How well the planted documents would have been found: one bad answer of each kind was seen."""
    path = own.folder / "finding.json"
    if not path.is_file():
        told(f"seed {own.seed}: finding what was planted")
        problem = own.problem
        first = {attack.keys: attack for attack in reversed(problem.attacks)}
        taught = own.taught("shard").adapters
        found = find(
            own.models.host,
            {shard: state for shard, state in taught.items() if state is not None},
            problem.learned,
            own.shards("shard"),
            problem.planted,
            list(first.values()),
            getattr(torch, own.config.training.dtype),
        )
        write_atomic(path, json.dumps(found).encode())
    kept_before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept_before


def _digests(adapters: Mapping[int, Any]) -> dict[int, str]:
    return {n: "base" if state is None else digest(state) for n, state in sorted(adapters.items())}


def _inputs(problem: Problem) -> str:
    """SHA-256 (hex) over everything that is learned or asked."""
    total = hashlib.sha256()
    groups: dict[str, Sequence[Document]] = {
        "learned": problem.learned,
        "strangers": problem.strangers,
        **problem.general,
    }
    for name, group in sorted(groups.items()):
        total.update(f"{name} {len(group)}\n".encode())
        for document in group:
            total.update(document.model_dump_json().encode() + b"\n")
    rest = (problem.forget, problem.topic, dict(problem.choices), problem.attacks)
    total.update(repr(rest).encode())
    return total.hexdigest()
