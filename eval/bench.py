"""All one-pass probes beside one metric at a time, in one process, turn by turn.

Guarantees: both sides read the same token ids in batches of the same size, with the same model in
the same precision, and must agree on every value, or the comparison is refused; forward passes are
counted by a hook, on both sides. The other side is what one writes from the papers, and what
harnesses do that keep metrics apart: each metric pads, runs the model, and reduces its own logits.
It orders texts by length, as we do, so that the difference is not padding.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.eval.battery import Probed, counted, probe_texts
from llm_unlearn.eval.encoding import Encoded, encode_texts
from llm_unlearn.eval.passes import Sampling, evaluating

_SAMPLING = Sampling(temperature=0.8, top_k=40)
_SHARE = 0.2
_LOOKS = 256  # at memory that are kept; then every second one is dropped
FEWEST = 10
"""Texts that a look at memory needs."""


@dataclass(frozen=True)
class Row:
    """One side: texts a second (median, least and most of the rounds), passes a text."""

    name: str
    median: float
    least: float
    most: float
    passes: float


@dataclass(frozen=True)
class Compared:
    """Both sides, and how many texts and tokens each round had."""

    shared: Row
    single: Row
    metrics: tuple[str, ...]
    texts: int
    tokens: int

    @property
    def ratio(self) -> float:
        """Texts a second, ours over theirs."""
        return self.shared.median / self.single.median


@dataclass(frozen=True)
class Memory:
    """Resident megabytes after a tenth of the texts, the most seen after that, and the time taken."""

    texts: int
    tokens: int
    after_a_tenth: float
    most: float
    seconds: float


def invented(count: int, words: int = 40) -> Iterator[str]:
    """Texts of `words` words of a small vocabulary, all different."""
    known = ("river", "stone", "lamp", "winter", "letter", "garden", "copper", "thread", "bread")
    for i in range(count):
        said = (known[(i + 5 * k * k + k * (i % 7)) % len(known)] for k in range(words - 1))
        yield f"Note {i}: {' '.join(said)}."


def compare(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    rounds: int = 3,
    told: Callable[[str], None] = lambda _: None,
) -> Compared:
    """Time the shared pass and the single metrics by turns.

    Raises:
        EnvironmentFailure: the two do not give the same values.
        InputError: no texts or rounds.
    """
    if not texts or rounds < 1:
        raise InputError(f"{len(texts)} texts, {rounds} rounds.", "Give at least one of each.")
    encoded = encode_texts(tokenizer, texts)
    single = Single(model, batch_size)
    times: dict[str, list[float]] = {"shared": [], "single": []}
    rows: dict[str, int] = {}
    for number in range(rounds):
        told(f"round {number + 1} of {rounds}")
        with counted(model) as passes:
            began = time.perf_counter()
            ours = list(
                probe_texts(
                    model,
                    zip(encoded, texts, strict=True),
                    batch_size=batch_size,
                    share=_SHARE,
                    sampling=[_SAMPLING],
                )
            )
            times["shared"].append(len(texts) / (time.perf_counter() - began))
        rows["shared"] = passes.rows
        with counted(model) as passes:
            began = time.perf_counter()
            theirs = {name: metric(encoded, texts) for name, metric in single.metrics.items()}
            times["single"].append(len(texts) / (time.perf_counter() - began))
        rows["single"] = passes.rows
        _agree(ours, theirs)
    made = [
        Row(name, statistics.median(t), min(t), max(t), rows[name] / len(texts))
        for name, t in times.items()
    ]
    return Compared(
        made[0],
        made[1],
        tuple(single.metrics),
        len(texts),
        sum(len(e.ids) for e in encoded),
    )


def memory(
    model: Any,
    tokenizer: Any,
    texts: Iterator[str],
    count: int,
    *,
    batch_size: int = 8,
    told: Callable[[str], None] = lambda _: None,
) -> Memory:
    """Stream `count` texts through every one-pass probe and look at resident memory on the way.

    What came is counted, not what was asked for: a stream may end before, and the tenth is its own.

    Raises:
        InputError: fewer than `FEWEST` texts came, of which no tenth tells anything.
    """
    tokens = 0

    def read() -> Iterator[tuple[Encoded, str]]:
        nonlocal tokens
        for text in islice(texts, count):
            [encoded] = encode_texts(tokenizer, [text])
            tokens += len(encoded.ids)
            yield encoded, text

    began = time.perf_counter()
    number, step = 0, 1
    looked: list[tuple[int, float]] = []  # after so many texts, so many megabytes
    for number, _ in enumerate(probe_texts(model, read(), batch_size=batch_size), 1):
        if number % step == 0:
            looked.append((number, _resident()))
            if len(looked) == _LOOKS:
                looked, step = looked[1::2], step * 2
        if number % 1000 == 0:
            told(f"{number} texts")
    if number < FEWEST:
        raise InputError(
            f"{number} texts came, too few to see memory grow.", f"Give at least {FEWEST}."
        )
    early = max(now for at, now in looked if at <= max(number // 10, looked[0][0]))
    most = max(now for _, now in looked)
    return Memory(number, tokens, early, most, time.perf_counter() - began)


def _resident() -> float:
    """Megabytes in memory now; where /proc is missing, the most so far."""
    status = Path("/proc/self/statm")
    if status.is_file():
        pages = int(status.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Single:
    """Each metric by itself: its own padding, its own pass, its own reduction."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model = model
        self._batch = batch_size
        self.metrics: dict[str, Callable[[Sequence[Encoded], Sequence[str]], list[float]]] = {
            "probability": self._each(lambda logits, ids: float(_logp(logits, ids).mean().exp())),
            "exact": self._each(lambda logits, ids: float(_hits(logits, ids).mean())),
            "extraction strength": self._each(_strength),
            "loss": self._each(lambda logits, ids: float(_logp(logits, ids).mean())),
            "zlib": self._zlib,
            "min_k": self._each(lambda logits, ids: _least(_logp(logits, ids))),
            "min_k_plus": self._each(_min_k_plus),
            "discoverable": self._each(_drawn),
        }

    def _each(
        self, metric: Callable[[Tensor, Tensor], float]
    ) -> Callable[[Sequence[Encoded], Sequence[str]], list[float]]:
        def run(encoded: Sequence[Encoded], _texts: Sequence[str]) -> list[float]:
            found = [0.0] * len(encoded)
            for i, logits, ids in self._passes(encoded):
                found[i] = metric(logits, ids)
            return found

        return run

    def _zlib(self, encoded: Sequence[Encoded], texts: Sequence[str]) -> list[float]:
        means = self.metrics["loss"](encoded, texts)
        return [m / len(zlib.compress(t.encode())) for m, t in zip(means, texts, strict=True)]

    def _passes(self, encoded: Sequence[Encoded]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Index, logits (targets, vocabulary) and targets (targets,) of each text."""
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids))
        with evaluating(self._model), torch.inference_mode():
            for start in range(0, len(order), self._batch):
                chosen = order[start : start + self._batch]
                width = len(encoded[chosen[0]].ids)
                ids = torch.zeros((len(chosen), width), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, i in enumerate(chosen):
                    ids[row, : len(encoded[i].ids)] = torch.tensor(encoded[i].ids)
                    mask[row, : len(encoded[i].ids)] = 1
                logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                for row, i in enumerate(chosen):
                    marked = torch.tensor(encoded[i].mask)[1:]
                    size = len(encoded[i].ids)
                    yield i, logits[row, : size - 1][marked].float(), ids[row, 1:size][marked]


def _logp(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0]


def _hits(logits: Tensor, ids: Tensor) -> Tensor:
    return (logits.argmax(-1) == ids).double()


def _strength(logits: Tensor, ids: Tensor) -> float:
    hits = _hits(logits, ids)
    for start in range(len(hits)):
        if hits[start:].all():
            return 1 - start / len(hits)
    return 0.0


def _least(values: Tensor) -> float:
    count = max(1, int(_SHARE * len(values)))
    return float(values.sort().values[:count].double().mean())


def _min_k_plus(logits: Tensor, ids: Tensor) -> float:
    every = torch.log_softmax(logits, -1)
    mu = (every.exp() * every).sum(-1)
    sigma = ((every.exp() * (every - mu[:, None]).square()).sum(-1)).sqrt()
    return _least((every.gather(1, ids[:, None])[:, 0] - mu) / sigma)


def _drawn(logits: Tensor, ids: Tensor) -> float:
    scaled = logits / _SAMPLING.temperature
    least = scaled.topk(_SAMPLING.top_k or 1, dim=-1).values[:, -1:]
    kept = torch.log_softmax(scaled.masked_fill(scaled < least, -torch.inf), -1)
    return float(kept.gather(1, ids[:, None]).sum())


def _agree(ours: Sequence[Probed], theirs: dict[str, list[float]]) -> None:
    mine: dict[str, list[float]] = {
        "probability": [p.memorization.probability for p in ours],
        "exact": [p.memorization.exact for p in ours],
        "extraction strength": [p.memorization.extraction_strength for p in ours],
        **{name: [p.membership[name] for p in ours] for name in ours[0].membership},
        "discoverable": [p.draws[0] for p in ours],
    }
    for name, values in theirs.items():
        a, b = np.array(mine[name]), np.array(values)
        same = np.isclose(a, b, rtol=0.02, atol=0.02)
        # one token at a tie, or at the edge of the top k, is decided by rounding
        if same.mean() < 0.9:
            worst = int(np.argmax(np.where(same, 0, 1)))
            raise EnvironmentFailure(
                f"{name} of text {worst} is {a[worst]:.4f} here and {b[worst]:.4f} alone.",
                "Not comparable; please report it.",
            )
