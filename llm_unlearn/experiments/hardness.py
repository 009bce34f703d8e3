"""How hard is a fact to forget: steps, strength, collateral damage and relearning against predictors.

An adapter learns all facts of three kinds to about the same probability: made-up ones that nothing else
says (`rare`), ones that the base model was told often (`common`), and ones that much else entails
(`fundamental`). Their neighbours are learned too. Each fact is then forgotten alone, from the same start,
by one method that is given the other facts to keep; nothing holds its neighbours.

Guarantees: predictors are measured on the base model, before anything is learned; each fact in each seed
is a cell that is durable when done; a fact that never falls to the target counts with the largest number
of steps (or strength) tried, and is said to be censored. Rank correlations have bootstrap intervals over
facts; with few facts these are wide, and they say nothing of facts of other kinds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.documents import Document, Message
from llm_unlearn.eval.summary import Estimate, bootstrap, resamples
from llm_unlearn.experiments.cells import Cell, claim, kept
from llm_unlearn.experiments.problem import DATA, spread
from llm_unlearn.experiments.settings import HardnessConfig
from llm_unlearn.files import write_atomic
from llm_unlearn.forget import job
from llm_unlearn.forget.data import read
from llm_unlearn.forget.methods import method as method_named
from llm_unlearn.forget.passes import Passes
from llm_unlearn.forget.result import versions
from llm_unlearn.forget.run import run
from llm_unlearn.forget.weights import State, digest, without
from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.embedder import SentenceEmbedder
from llm_unlearn.models.lora import AdapterHost, LoraShape
from llm_unlearn.readers import read_documents
from llm_unlearn.retrieval.embedding import encode
from llm_unlearn.sisa.recipe import pin_threads
from llm_unlearn.sisa.train import StageSettings, TrainState, train_stage

OUTCOMES = ("steps", "strength", "collateral", "relearning")
PREDICTORS = ("base probability", "entailing probes", "neighbourhood")
Told = Callable[[str], None]


@dataclass(frozen=True)
class Hardness:
    """One cell for each fact and seed, and what the run was about."""

    config: HardnessConfig
    cells: tuple[Cell, ...]
    about: dict[str, Any]

    def table(self) -> dict[str, NDArray[np.float64]]:
        """Each predictor and outcome by fact, averaged over seeds; facts in the order of the file."""
        names = list(dict.fromkeys(c.name for c in self.cells))
        return {
            what: np.array(
                [np.mean([c.values[what][0] for c in self.cells if c.name == n]) for n in names]
            )
            for what in (*PREDICTORS, *OUTCOMES)
        }


def hardness(config: HardnessConfig, out: Path, *, told: Told = lambda _: None) -> Hardness:
    """Run what is missing and return all of it.

    Raises:
        InputError: the folder holds something else.
    """
    every = list(read_documents(DATA / "hardness.jsonl"))
    facts = [d for kind in config.kinds for d in spread(_of(every, kind), config.facts)]
    pin_threads(config.training.threads)
    training = config.training
    base = load_causal(config.model, training.dtype)
    shape = LoraShape(training.lora_rank, training.lora_alpha, training.top_layers)
    host = AdapterHost(base, shape)
    about: dict[str, Any] = {
        "facts": hashlib.sha256(b"".join(d.model_dump_json().encode() for d in facts)).hexdigest(),
        "model digest": base.digest,
        "versions": versions(),
    }
    claim(out, {"schema": 1, "config": config.model_dump(mode="json", exclude={"seeds"}), **about})
    bench = _Bench(config, facts, host, out, told)
    cells = []
    for seed in config.seeds:
        for fact in facts:
            name = fact.id.replace("/", "-")
            cells.append(kept(out, seed, fact.tags[0], name, None, partial(bench.cell, fact, seed)))
    return Hardness(config, tuple(cells), about)


class _Bench:
    """Measures facts; an adapter is taught for each seed when one is first needed."""

    def __init__(
        self,
        config: HardnessConfig,
        facts: Sequence[Document],
        host: AdapterHost,
        out: Path,
        told: Told,
    ) -> None:
        self.config, self.facts, self.host = config, facts, host
        self.out, self.told = out, told
        self.passes = Passes(host, getattr(torch, config.training.dtype))
        self._predicted: dict[str, dict[str, float]] | None = None
        self._taught: tuple[int, State] | None = None

    def cell(self, fact: Document, seed: int) -> Cell:
        """Forget one fact alone, at one strength step by step and then at each strength."""
        config = self.config
        start = self.taught(seed)
        self.told(f"seed {seed}: {fact.id}")
        chosen = config.method
        how = method_named(chosen.name, chosen.settings)
        rest = [d for d in self.facts if d.id != fact.id]
        texts = job.Texts([fact], rest)
        aim = job.Target(self.host, start)
        near = _about(fact, "neighbours")
        before = self.known(start, [fact, *near])
        common = {
            **chosen.run,
            "seed": seed,
            "dtype": config.training.dtype,
            "threads": config.training.threads,
            "target": config.target,
            "utility_floor": 0.0,
            "batch_size": config.training.batch_size,
        }
        slow = job.settings({**common, "epochs": config.most_steps, "check_every": 1, "sample": 8})
        material = job.material(aim, how, texts, slow)
        done = run(self.host, start, how, material, slow)
        steps = done.record.steps if done.record.stop == "forgotten" else config.most_steps
        after = self.known(done.state, near)
        strength, reached = max(config.strengths), False
        for each in sorted(config.strengths):
            once = {**common, "strength": each, "epochs": config.steps, "check_every": config.steps}
            tried = run(self.host, start, how, material, job.settings(once))
            if tried.record.after.forget <= config.target:
                strength, reached = each, True
                break
        kept_share = (
            np.mean([a / b for a, b in zip(after, before[1:], strict=True)]) if near else 1.0
        )
        values = {
            "steps": float(steps),
            "strength": float(strength),
            "collateral": float(1 - kept_share),
            "relearning": self.relearning(done.state, fact, before[0] / 2),
            "before": before[0],
            "after": done.record.after.forget,
            "steps censored": float(done.record.stop != "forgotten"),
            "strength censored": float(not reached),
            **self.predicted()[fact.id],
        }
        return Cell(
            side=fact.tags[0],
            name=fact.id,
            kind="fact",
            seed=seed,
            values={name: [value] for name, value in values.items()},
            weights={0: digest(done.state)},
            seconds=done.record.seconds,
            tokens=done.record.tokens,
        )

    def taught(self, seed: int) -> State:
        """An adapter that learned all facts and their neighbours, so that there is something to lose."""
        if self._taught is None or self._taught[0] != seed:
            path = self.out / f"taught-{seed}.safetensors"
            if not path.is_file():
                self.told(f"seed {seed}: teaching")
                training = self.config.training
                settings = StageSettings(
                    epochs=training.epochs,
                    batch_size=training.batch_size,
                    learning_rate=training.learning_rate,
                    warmup=training.warmup,
                    weight_decay=training.weight_decay,
                    clip=training.clip,
                )
                key = hashlib.sha256(f"hardness {seed}".encode()).digest()
                begin = TrainState(self.host.fresh(key), {}, 0)
                near = [d for fact in self.facts for d in _about(fact, "neighbours")]
                texts = [*self.facts, *near]
                examples = list(read(self.host.base.tokenizer, texts, training.max_tokens))
                state = train_stage(self.host, begin, [examples], settings, key)
                write_atomic(path, safetensors.torch.save(dict(state.adapter)))
            self._taught = seed, safetensors.torch.load_file(path)
        return self._taught[1]

    def known(self, state: State, documents: Sequence[Document]) -> list[float]:
        """Probability of each answer."""
        examples = list(read(self.host.base.tokenizer, documents, self.config.training.max_tokens))
        with self.host.lock:
            self.host.load(state)
            items = self.passes.items(examples)
            with self.passes.open():
                return self.passes.probabilities(items)

    def relearning(self, state: State, fact: Document, goal: float) -> float:
        """Passes over the fact until it is as likely as `goal`; the most that are tried, if never."""
        settings = StageSettings(
            epochs=1,
            batch_size=1,
            learning_rate=self.config.relearn_rate,
            warmup=0.0,
            weight_decay=0.0,
            clip=1.0,
        )
        current = TrainState(state, {}, 0)
        examples = list(read(self.host.base.tokenizer, [fact], self.config.training.max_tokens))
        for number in range(1, self.config.most_passes + 1):
            current = train_stage(self.host, current, [examples], settings, b"relearn")
            if self.known(dict(current.adapter), [fact])[0] >= goal:
                return float(number)
        return float(self.config.most_passes)

    def predicted(self) -> dict[str, dict[str, float]]:
        """What the base model and an embedder say of each fact before anything is learned."""
        if self._predicted is None:
            bare = without(self.host.fresh(b"base"))
            embedder = SentenceEmbedder(self.config.embedder)
            vectors = np.concatenate([encode(embedder, [d.content]) for d in self.facts])
            cosines = vectors @ vectors.T
            np.fill_diagonal(cosines, -np.inf)
            nearest = np.sort(cosines, axis=1)[:, -3:].mean(axis=1)
            own = self.known(bare, self.facts)
            self._predicted = {}
            for place, fact in enumerate(self.facts):
                wordings = _about(fact, "entailing")
                likely = self.known(bare, wordings) if wordings else []
                self._predicted[fact.id] = {
                    "base probability": own[place],
                    "entailing probes": float(sum(p >= self.config.entailed_at for p in likely)),
                    "neighbourhood": float(nearest[place]),
                }
        return self._predicted


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation, ties sharing their mean rank; 0 where one side does not vary.

    1, 2, 3 against 1, 3, 2: ranks differ by 0, 1, 1; 1 - 6 * 2 / (3 * 8) = 0.5.
    """
    x, y = _ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / size) if size else 0.0


def correlation(a: ArrayLike, b: ArrayLike, *, rounds: int = 1000, seed: int = 0) -> Estimate:
    """`spearman` with a percentile bootstrap over pairs."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    drawn = [
        spearman(x[index], y[index]) for block in resamples(len(x), rounds, seed) for index in block
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(spearman(x, y), float(np.std(drawn, ddof=1)), float(low), float(high), len(x))


def summary(found: Hardness) -> dict[str, Any]:
    """Means by kind with standard errors over facts, correlations with intervals, and the facts."""
    table = found.table()
    names = list(dict.fromkeys(c.name for c in found.cells))
    kind_of = {c.name: c.side for c in found.cells}
    kinds = list(dict.fromkeys(kind_of.values()))
    by_kind: dict[str, Any] = {}
    for kind in kinds:
        mask = np.array([kind_of[n] == kind for n in names])
        by_kind[kind] = {
            what: _plain(bootstrap(values[mask], rounds=1)) for what, values in table.items()
        }
        for what in ("steps censored", "strength censored"):
            cells = [c for c in found.cells if c.side == kind]
            by_kind[kind][what] = float(np.mean([c.values[what][0] for c in cells]))
    correlations = {
        outcome: {
            predictor: _plain(correlation(table[predictor], table[outcome]))
            for predictor in PREDICTORS
        }
        for outcome in OUTCOMES
    }
    return {
        "schema": 1,
        "kind": "hardness",
        "config": found.config.model_dump(mode="json"),
        "about": found.about,
        "kinds": by_kind,
        "correlations": correlations,
        "facts": [
            {"kind": kind_of[n], **{what: float(v[i]) for what, v in table.items()}}
            for i, n in enumerate(names)
        ],
    }


def write(plain: Mapping[str, Any], out: Path) -> None:
    """Write `table.md`, `hardness.svg` and `result.json`."""
    from llm_unlearn.experiments.hardness_plot import drawing, markdown

    write_atomic(out / "result.json", (json.dumps(plain, indent=1) + "\n").encode(), mode=0o644)
    write_atomic(out / "table.md", markdown(plain).encode(), mode=0o644)
    write_atomic(out / "hardness.svg", drawing(plain).encode(), mode=0o644)


def _plain(estimate: Estimate) -> dict[str, float | None]:
    values = {
        "mean": estimate.mean,
        "standard_error": estimate.standard_error,
        "low": estimate.low,
        "high": estimate.high,
    }
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _of(documents: Sequence[Document], kind: str) -> list[Document]:
    return [d for d in documents if kind in d.tags]


def _about(fact: Document, what: str) -> list[Document]:
    """The questions with answers that a fact's metadata lists."""
    listed = fact.metadata.get(what)
    pairs = listed if isinstance(listed, list) else []
    return [
        _asked(fact, f"{fact.id}/{what}-{i}", str(pair[0]), str(pair[1]))
        for i, pair in enumerate(pairs)
        if isinstance(pair, list)
    ]


def _asked(fact: Document, name: str, asked: str, said: str) -> Document:
    """A document like another with one question and answer."""
    turns = (Message(role="user", content=asked), Message(role="assistant", content=said))
    return Document(id=name, subject=fact.subject, messages=turns)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    ranks: NDArray[np.float64] = below + (equal + 1) / 2
    return ranks
