"""How long an answer takes with one adapter, routed, by all of them, and merged; how fast a rollback is.

Adapters are random and documents made up, since time does not depend on what was learned; everything
else is a real workspace: sealed checkpoints, router, embedder, access, the answerer itself. Ways take
turns within one run, and each answer has the same number of tokens. Compare the lines of one run, not
runs: it measures this machine at this moment.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_unlearn.answering import Answerer, make_answerer
from llm_unlearn.config import AnsweringConfig, Config
from llm_unlearn.documents import Document, Message
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.opened import Models
from llm_unlearn.sisa.train import TrainState
from llm_unlearn.workspace import Workspace

WAYS = ("one adapter", "route", "route-k", "ensemble", "ensemble-log", "merge")
_PER_SHARD = 12


@dataclass(frozen=True)
class Timed:
    """Seconds of one way to answer: median, least, most, and the ratio of medians to one adapter."""

    way: str
    median: float
    least: float
    most: float
    ratio: float


@dataclass(frozen=True)
class Result:
    """What was measured; `rollback` is the time from the fence to a clean ensemble in memory."""

    shards: int
    tokens: int
    rounds: int
    answers: tuple[Timed, ...]
    rollback_shards: int
    rollback: Timed
    adapter_bytes: int


def run(
    *,
    shards: int = 8,
    rollback_shards: int = 16,
    tokens: int = 32,
    rounds: int = 5,
    settings: dict[str, Any] | None = None,
    begun: Callable[[str], None] = lambda _what: None,
) -> Result:
    """Measure.

    Args:
        settings: the config's, for other models than the default ones.
        begun: told what is being measured.
    """
    models = Models(_config(shards, settings))
    host = models.host
    # answers of one length: nothing stops before `tokens`
    host.base.tokenizer.eos_token_id = None
    if host.base.model.generation_config is not None:
        host.base.model.generation_config.eos_token_id = None
    begun(f"{shards} shards answering")
    with _workspace(_config(shards, settings), models) as workspace:
        answerers = {way: _answerer(workspace, way, tokens) for way in WAYS[1:]}
        question = _documents(shards)[0].messages[0].content
        alone = answerers["route"].serving.adapters(
            sorted(answerers["route"].stand().serving.items())[:1]
        )[0]
        prompt = prompt_ids(host.base.tokenizer, question)

        def one() -> None:
            with host.using(alone):
                generate(host.base, [prompt], max_new_tokens=tokens)

        group = (workspace.config.retrieval.default_group,)
        ways: dict[str, Callable[[], object]] = {"one adapter": one}
        for way, answerer in answerers.items():
            ways[way] = lambda answerer=answerer: answerer.ask([question], group)  # type: ignore[misc]
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):  # the first round warms up
            for way, answer in ways.items():
                started = time.perf_counter()
                answer()
                if number:
                    taken[way].append(time.perf_counter() - started)
        size = sum(tensor.nbytes for tensor in alone.values())
    base = statistics.median(taken["one adapter"])
    answers = tuple(_timed(way, seconds, base) for way, seconds in taken.items())
    begun(f"rollback with {rollback_shards} shards")
    rollback = _rollback(_config(rollback_shards, settings), models, rounds)
    return Result(shards, tokens, rounds, answers, rollback_shards, rollback, size)


def _timed(way: str, seconds: list[float], base: float) -> Timed:
    median = statistics.median(seconds)
    return Timed(way, median, min(seconds), max(seconds), median / base)


def _rollback(config: Config, models: Models, rounds: int) -> Timed:
    """Fence a subject with all adapters in memory, until the clean ones stand ready in their place."""
    with _workspace(config, models) as workspace:
        opened = workspace.opened
        answerer = _answerer(workspace, "ensemble", 1)
        seconds: list[float] = []
        for number in range(rounds):
            _ready(answerer)
            subject = opened.vault.mark("subject", f"subject {number}")
            handles = [record.handle for record in opened.vault.records(subject=subject)]
            loaded = answerer.serving.decrypted
            started = time.perf_counter()
            opened.vault.set_state(handles, "fenced")
            _ready(answerer)
            seconds.append(time.perf_counter() - started)
            if not answerer.serving.decrypted - loaded <= 1:
                raise AssertionError("a rollback of one shard reads one checkpoint at most")
            opened.vault.set_state(handles, "live")
    return _timed("rollback", seconds, statistics.median(seconds))


def _ready(answerer: Answerer) -> None:
    serving = sorted(answerer.stand().serving.items())
    answerer.serving.stacked(answerer.host(), serving, merged=False)


def _config(shards: int, settings: dict[str, Any] | None) -> Config:
    rule = {"name": "all", "when": {"source": ["bench"]}, "then": "corpus"}
    given = dict(settings or {})
    training = {**given.pop("training", {}), "shards": shards, "slices": 2}
    return Config.model_validate({**given, "separation": {"rules": [rule]}, "training": training})


def _documents(shards: int) -> list[Document]:
    return [
        Document(
            id=f"d{number}",
            subject=f"subject {number}",
            source="bench",
            messages=(
                Message(role="user", content=f"Which river does lock number {number} lie on?"),
                Message(role="assistant", content=f"Lock number {number} lies on river {number}."),
            ),
        )
        for number in range(_PER_SHARD * shards)
    ]


@contextmanager
def _workspace(config: Config, models: Models) -> Iterator[Workspace]:
    """A workspace whose checkpoints hold random adapters."""
    with tempfile.TemporaryDirectory() as folder:
        made = Workspace.create(
            Path(folder) / "workspace", keys=Path(folder) / "keys", config=config, models=models
        )
        with made as workspace:
            workspace.ingest(_documents(config.training.shards))
            opened = workspace.opened
            recipe = opened.current_recipe()
            with opened.database.transaction():
                opened.database.set_value("recipe", recipe.model_dump_json().encode())
                opened.database.set_value("recipe digest", recipe.digest)
                opened.ledger.close_generation()
            for state in opened.states():
                for part in state.wanted:
                    adapter = models.host.fresh(part.inputs)
                    generator = torch.Generator().manual_seed(part.shard)
                    for name, tensor in adapter.items():
                        if ".lora_B." in name:
                            tensor.normal_(0.0, 0.01, generator=generator)
                    moments = {
                        f"{kind}.{name}": tensor.clone()
                        for kind in ("exp_avg", "exp_avg_sq")
                        for name, tensor in adapter.items()
                    }
                    opened.checkpoints.save(part, TrainState(adapter, moments, 1))
            yield workspace


def _answerer(workspace: Workspace, way: str, tokens: int) -> Answerer:
    config = AnsweringConfig.model_validate({"aggregation": way, "max_new_tokens": tokens})
    return make_answerer(workspace.opened, config.model_copy(update={"route_threshold": -1.0}))
