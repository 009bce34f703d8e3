"""One forgetting step beside a plain transformers and peft one, in one process, turn by turn.

Guarantees: both do the same steps on the same texts with the same adapter, precision and optimizer, and
their first losses agree, or the comparison is refused. The peer is what one writes from the papers: pad to
a batch, two forward passes with labels, and for NPO a third with the adapter off. Time is per real token of
the texts. Not part of a step here, and reported apart: the lower layers and the reference, once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import EnvironmentFailure
from llm_unlearn.forget.data import read
from llm_unlearn.forget.method import Groups, Stepwise
from llm_unlearn.forget.methods.difference import GradientDifference
from llm_unlearn.forget.methods.npo import NPO
from llm_unlearn.forget.passes import Passes
from llm_unlearn.forget.weights import without
from llm_unlearn.models.causal import load_causal
from llm_unlearn.models.chat import Example
from llm_unlearn.models.lora import AdapterHost, LoraShape

_RATE, _CLIP = 1e-4, 1.0
_WORDS = [
    "river",
    "stone",
    "lamp",
    "winter",
    "letter",
    "garden",
    "copper",
    "thread",
    "harbour",
    "silent",
    "bread",
    "window",
    "north",
]


@dataclass(frozen=True)
class Row:
    """Milliseconds a real token of one method: medians, and the 25th and 75th percentile."""

    method: str
    ours: float
    ours_low: float
    ours_high: float
    peer: float
    peer_low: float
    peer_high: float
    prepare: float

    @property
    def ratio(self) -> float:
        """Our time over the peer's."""
        return self.ours / self.peer


def invented(count: int) -> list[Document]:
    """Questions with answers of about the length of TOFU's."""
    return [
        Document(
            id=str(i),
            messages=(
                Message(role="user", content=f"What is said of number {i} and the {_words(i, 6)}?"),
                Message(role="assistant", content=f"Number {i} is {_words(3 * i + 1, 30)}."),
            ),
        )
        for i in range(count)
    ]


def compare(
    model: str,
    documents: Sequence[Document],
    *,
    top_layers: int | None = 10,
    rank: int = 16,
    batch: int = 4,
    steps: int = 5,
    dtype: str = "bfloat16",
    threads: int = 2,
    told: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Time GradDiff and NPO, ours and the peer's by turns.

    Args:
        documents: the first half of each step's texts is to forget, the other half to keep.

    Raises:
        EnvironmentFailure: the two do not compute the same losses.
    """
    torch.set_num_threads(threads)
    base = load_causal(model, "bfloat16" if dtype == "bfloat16" else "float32")
    host = AdapterHost(base, LoraShape(rank, 2 * rank, top_layers))
    start = host.fresh(b"bench")
    generator = torch.Generator().manual_seed(0)
    for name in host.names:
        if ".lora_B." in name:
            start[name] = 0.01 * torch.randn(start[name].shape, generator=generator)
    examples = list(read(base.tokenizer, documents, 512))[: 2 * batch * steps]
    half = len(examples) // 2
    rows = []
    kinds: tuple[Stepwise, ...] = (GradientDifference(), NPO())
    for kind in kinds:
        told(kind.name)
        host.load(start)
        passes = Passes(host, getattr(torch, dtype))
        began = time.perf_counter()
        items = passes.items(examples)
        host.load(without(start))  # the reference is the base model, for both
        with passes.open():
            gone = passes.remember(items[:half], kind.forget_reference)
        prepare = time.perf_counter() - began
        kept = items[half:]
        peer = _Peer(host, base.tokenizer.pad_token_id, kind, getattr(torch, dtype))
        timed: dict[str, list[float]] = {"ours": [], "peer": []}
        places = [slice(i, i + batch) for i in range(0, half, batch)]
        optimizer = _adamw(host)
        for n, place in enumerate([places[0], *places]):  # the first one warms up
            host.load(start)
            tokens = sum(len(e.ids) for e in (*examples[:half][place], *examples[half:][place]))
            began = time.perf_counter()
            with passes.open():
                out = passes.forward({"forget": gone[place], "retain": kept[place]})
                loss = kind.loss(Groups(out["forget"], out["retain"]))
                _descend(host, optimizer, loss)
            ours = (time.perf_counter() - began) / tokens
            host.load(start)
            began = time.perf_counter()
            theirs = peer.step(examples[:half][place], examples[half:][place])
            other = (time.perf_counter() - began) / tokens
            if abs(float(loss.detach()) - theirs) > 0.03 * abs(theirs) + 0.03:
                raise EnvironmentFailure(
                    f"{kind.name}: our loss is {float(loss.detach()):.4f}, the peer's {theirs:.4f}.",
                    "Not comparable; please report it.",
                )
            if n:
                timed["ours"].append(1000 * ours)
                timed["peer"].append(1000 * other)
        rows.append(Row(kind.name, *_spread(timed["ours"]), *_spread(timed["peer"]), prepare))
    return rows


class _Peer:
    """GradDiff and NPO as plainly as they can be written on a peft model."""

    def __init__(self, host: AdapterHost, pad: int, kind: Stepwise, dtype: torch.dtype) -> None:
        self._host = host
        self._model: Any = host.model
        self._pad = pad
        self._kind = kind
        self._dtype = dtype
        self._optimizer = _adamw(host)

    def step(self, gone: Sequence[Example], kept: Sequence[Example]) -> float:
        with torch.autocast("cpu", dtype=self._dtype, enabled=self._dtype != torch.float32):
            forget, retain = self._batch(gone), self._batch(kept)
            if isinstance(self._kind, NPO):
                with torch.no_grad(), self._model.disable_adapter():
                    reference = self._sums(forget)
                ratio = self._sums(forget) - reference
                beta = self._kind.beta
                loss = -2 / beta * logsigmoid(-beta * ratio).mean() + self._mean(retain)
            else:
                loss = self._mean(retain) - self._mean(forget)
        _descend(self._host, self._optimizer, loss)
        return float(loss.detach())

    def _batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        width = max(len(e.ids) for e in examples)
        ids = torch.full((len(examples), width), self._pad)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)
        for row, example in enumerate(examples):
            size = len(example.ids)
            ids[row, :size] = torch.tensor(example.ids)
            mask[row, :size] = 1
            marked = torch.tensor(example.loss)
            labels[row, :size][marked] = ids[row, :size][marked]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _mean(self, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = self._model(**batch).loss
        return found

    def _sums(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self._model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        losses = cross_entropy(
            logits[:, :-1].float().transpose(1, 2), batch["labels"][:, 1:], reduction="none"
        )
        return -losses.sum(-1)


def _adamw(host: AdapterHost) -> torch.optim.AdamW:
    return torch.optim.AdamW(host.parameters(), lr=_RATE, weight_decay=0.0, foreach=True)


def _descend(host: AdapterHost, optimizer: torch.optim.AdamW, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(host.parameters(), _CLIP)
    optimizer.step()


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _words(start: int, count: int) -> str:
    return " ".join(_WORDS[(start + 5 * i * i) % len(_WORDS)] for i in range(count))


def tables(rows: Sequence[Row]) -> list[Table]:
    """The rows as a table for people."""
    table = Table(title="One forgetting step, milliseconds a token (quartiles)")
    for name in ("method", "here", "transformers + peft", "here / peer", "once, s"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.ours:.2f} ({row.ours_low:.2f} to {row.ours_high:.2f})",
            f"{row.peer:.2f} ({row.peer_low:.2f} to {row.peer_high:.2f})",
            f"{row.ratio:.2f}",
            f"{row.prepare:.1f}",
        )
    return [table]
