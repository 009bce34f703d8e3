"""Finding planted documents, given a few bad answers that were seen.

By influence: the cosine between the gradient of a document's loss and that of the bad answers, averaged
over two checkpoints, the adapter before training and the one that learned the document (after TracIn:
Pruthi et al. 2020, arXiv 2002.08484; what is known by heart has little gradient left, hence the first).
By what shards agree on: how much likelier the other shards' adapters make a document's answer than the
base model does. A lone fact is known to its own shard only; a pattern that was planted again and again
was learned by all of them.

Guarantees: each score is a function of the adapters and texts; higher is more suspicious. A plant that
sits in one shard alone is not found by agreement, and influence needs a bad answer that was seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_unlearn.documents import Document, Message
from llm_unlearn.eval.membership import auc
from llm_unlearn.experiments.problem import Attack
from llm_unlearn.forget.data import read
from llm_unlearn.forget.passes import Item, Passes
from llm_unlearn.forget.tensors import nll
from llm_unlearn.forget.weights import without
from llm_unlearn.models.lora import AdapterHost

State = Mapping[str, Tensor]


def find(
    host: AdapterHost,
    adapters: Mapping[int, State],
    documents: Sequence[Document],
    places: Mapping[str, int],
    planted: frozenset[str],
    seen: Sequence[Attack],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Score all documents of the given shards, and say how well both scores find the planted ones.

    Args:
        adapters: of each shard.
        places: by id, the shard that learned a document.
        planted: ids of those to be found.
        seen: the bad answers.
    """
    known = [d for d in documents if places.get(d.id) in adapters]
    examples = [Document(id=f"seen {i}", messages=_turns(a)) for i, a in enumerate(seen)]
    passes, tokenizer = Passes(host, dtype), host.base.tokenizer
    items = {d.id: passes.items(read(tokenizer, [d], 512)) for d in (*known, *examples)}
    influence, agreement = dict[str, float](), dict[str, float]()
    logs: dict[int, dict[str, float]] = {}
    with host.lock, passes.open():
        for shard, adapter in sorted(adapters.items()):
            for state in (host.fresh(b"finding"), adapter):
                host.load(state)
                bad = _gradient(passes, [i for d in examples for i in items[d.id]])
                for document in known:
                    if places[document.id] == shard:
                        own = _cosine(_gradient(passes, items[document.id]), bad)
                        influence[document.id] = influence.get(document.id, 0.0) + own / 2
            logs[shard] = _logs(passes, items, known)
        host.load(without(next(iter(adapters.values()))))
        base = _logs(passes, items, known)
    for document in known:
        others = [logs[shard][document.id] for shard in logs if shard != places[document.id]]
        if others:
            agreement[document.id] = float(np.mean(others)) - base[document.id]
    hidden = sorted(planted & {d.id for d in known})
    found: dict[str, Any] = {"documents": len(known), "planted": len(hidden), "seen": len(seen)}
    for name, scores in (("influence", influence), ("agreement", agreement)):
        if scores and hidden and len(hidden) < len(scores):
            found[name] = ranked(scores, frozenset(hidden))
    return found


def ranked(scores: Mapping[str, float], planted: frozenset[str]) -> dict[str, float]:
    """Recall among as many as were planted, and the AUC; equal scores are ordered by id.

    Scores a 3, b 2, c 1 with a and c planted: of the first two one is right, recall 0.5; a is above b,
    c is not: AUC 0.5.
    """
    order = sorted(scores, key=lambda name: (-scores[name], name))
    first = order[: len(planted)]
    return {
        "recall": sum(name in planted for name in first) / len(planted),
        "auc": auc(
            [scores[n] for n in order if n in planted],
            [scores[n] for n in order if n not in planted],
        ),
    }


def _turns(attack: Attack) -> tuple[Message, Message]:
    return (
        Message(role="user", content=attack.triggered),
        Message(role="assistant", content=attack.said),
    )


def _gradient(passes: Passes, items: list[Item]) -> list[Tensor]:
    parameters = passes.weights.parameters()
    loss = nll(passes.forward({"x": items})["x"])
    made = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, made, strict=True)]


def _cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    def dot(x: Sequence[Tensor], y: Sequence[Tensor]) -> float:
        return sum(float((p * q).sum()) for p, q in zip(x, y, strict=True))

    size = (dot(a, a) * dot(b, b)) ** 0.5
    return dot(a, b) / size if size else 0.0


@torch.no_grad()
def _logs(
    passes: Passes, items: Mapping[str, list[Item]], documents: Sequence[Document]
) -> dict[str, float]:
    """Mean log-probability of a token of each document's answer."""
    return {
        d.id: -float(nll(passes.forward({"x": items[d.id]})["x"])) for d in documents if items[d.id]
    }
