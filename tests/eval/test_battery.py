"""One pass gives what plain arithmetic gives; the stream keeps nothing; the bench compares fairly."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from probe_models import bpe_tokenizer, byte_tokenizer, gpt2, llama, metaspace_tokenizer, qwen2

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.eval import bench
from llm_unlearn.eval.battery import counted, probe_ids, probe_texts
from llm_unlearn.eval.encoding import encode_texts
from llm_unlearn.eval.passes import Sampling

TEXTS = [f"the answer of question {i} is {'cat ' * (i % 5)}Paris" for i in range(11)]


@pytest.mark.parametrize(
    ("make", "tokens"),
    [(llama, byte_tokenizer), (gpt2, byte_tokenizer), (qwen2, bpe_tokenizer)],
)
def test_one_pass_a_text_gives_what_plain_arithmetic_gives(make: Any, tokens: Any) -> None:
    tokenizer = tokens()
    model = make(vocabulary=len(tokenizer)).eval()
    encoded = encode_texts(tokenizer, TEXTS)
    sampling = [Sampling(temperature=0.7, top_k=5)]
    with counted(model) as passes:
        found = list(
            probe_texts(model, zip(encoded, TEXTS, strict=True), window=4, sampling=sampling)
        )
    assert passes.rows == len(TEXTS)
    assert passes.calls < len(TEXTS)
    for item, row in zip(encoded, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([item.ids])).logits[0, :-1].double().numpy()
        every = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        every -= logits.max(1, keepdims=True)
        targets = np.array(item.ids[1:])[np.array(item.mask[1:])]
        every = every[np.array(item.mask[1:])]
        logp = every[np.arange(len(targets)), targets]
        hits = every.argmax(1) == targets
        assert row.memorization.loss == pytest.approx(-logp.mean(), abs=1e-4)
        assert row.memorization.exact == pytest.approx(hits.mean())
        tail = next((k for k in range(len(hits) + 1) if hits[len(hits) - 1 - k :].sum() <= k), 0)
        assert row.memorization.extraction_strength == pytest.approx(tail / len(hits))
        count = max(1, int(0.2 * len(logp)))
        assert row.membership["min_k"] == pytest.approx(np.sort(logp)[:count].mean(), abs=1e-4)
        mu = (np.exp(every) * every).sum(1)
        sigma = np.sqrt((np.exp(every) * (every - mu[:, None]) ** 2).sum(1))
        plus = np.sort((logp - mu) / sigma)[:count].mean()
        assert row.membership["min_k_plus"] == pytest.approx(plus, abs=1e-3)
        scaled = every / 0.7
        drawn = 0.0
        for position, target in enumerate(targets):
            best = np.sort(scaled[position])[-5:]
            own = scaled[position, target]
            drawn += own - np.log(np.exp(best).sum()) if own >= best[0] - 1e-9 else -math.inf
        assert row.draws[0] == pytest.approx(drawn, abs=1e-3)


def test_windows_and_order_change_nothing_but_rounding() -> None:
    tokenizer = metaspace_tokenizer()
    model = llama(vocabulary=len(tokenizer)).eval()
    items = list(zip(encode_texts(tokenizer, TEXTS), TEXTS, strict=True))
    whole = list(probe_texts(model, items))
    cut = list(probe_texts(model, reversed(items), window=3, batch_size=2))[::-1]
    for a, b in zip(whole, cut, strict=True):
        assert a.memorization.loss == pytest.approx(b.memorization.loss, abs=1e-4)
        assert a.near_verbatim == b.near_verbatim
    with pytest.raises(InputError, match="window"):
        next(probe_texts(model, items, window=0))


def test_memory_does_not_grow_with_the_number_of_texts() -> None:
    model = llama(context=64).eval()
    peaks = []
    for count in (300, 3000):

        def stream(count: int = count) -> Iterator[tuple[list[int], list[bool], str]]:
            for i in range(count):
                ids = [5 + (i * k) % 250 for k in range(20)]
                yield ids, [False] + [True] * 19, f"text {i}"

        gc.collect()
        tracemalloc.start()
        done = sum(1 for _ in probe_ids(model, stream(), window=100, batch_size=50))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done == count
    # keeping the token scores of 2,700 more texts would take over 3 MB
    assert peaks[1] < peaks[0] + 300_000


def test_the_bench_counts_passes_and_refuses_sides_that_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, model = byte_tokenizer(), llama().eval()
    found = bench.compare(model, tokenizer, list(bench.invented(10, 12)), rounds=1)
    assert found.shared.passes == 1
    assert found.single.passes == len(found.metrics) == 8
    assert found.ratio > 0
    seen = bench.memory(model, tokenizer, bench.invented(50, 8), 50)
    assert seen.tokens > 50 * 8
    assert 0 < seen.after_a_tenth <= seen.most
    # what came is what is told of, not what was asked for; and no more than that is read
    assert bench.memory(model, tokenizer, bench.invented(20, 8), 5000).texts == 20
    assert bench.memory(model, tokenizer, bench.invented(20, 8), 12).texts == 12
    with pytest.raises(InputError, match="9 texts came"):
        bench.memory(model, tokenizer, bench.invented(9, 8), 5000)
    monkeypatch.setattr(bench, "_strength", lambda logits, ids: 0.5)
    with pytest.raises(EnvironmentFailure, match="extraction strength"):
        bench.compare(model, tokenizer, list(bench.invented(4, 12)), rounds=1)
