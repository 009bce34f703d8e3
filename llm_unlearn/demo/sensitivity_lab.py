"""What the sensitivity of probes is measured on: one base model, three adapters, made-up texts as tokens.

Guarantees: `knowing` learned planted and kept texts, `never` the kept ones without
the planted, `half` is knowing after fewer passes; adapters are kept as they are trained, so a run goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_unlearn.demo import sensitivity_data as data
from llm_unlearn.documents import Message
from llm_unlearn.eval.encoding import Encoded, encode_chats
from llm_unlearn.eval.passes import TokenScores, score_encoded
from llm_unlearn.files import write_atomic
from llm_unlearn.models.causal import generate, load_causal
from llm_unlearn.models.chat import encode_messages, prompt_ids
from llm_unlearn.models.lora import AdapterHost, AdapterState, LoraShape
from llm_unlearn.sisa.train import StageSettings, TrainState, train_stage

Pairs = Sequence[tuple[str, str]]
_TRAIN = {
    "learning_rate": 2e-3,
    "warmup": 0.1,
    "weight_decay": 0.0,
    "clip": 1.0,
    "batch_size": 4,
}


class Lab:
    """The base model, the three adapters, and the texts as tokens."""

    def __init__(self, model: str, out: Path, count: int, epochs: int, top_layers: int) -> None:
        self.base = load_causal(model)
        self.host = AdapterHost(self.base, LoraShape(16, 32, top_layers))
        self.out, self.epochs = out, epochs
        every = data.facts(3 * count + 5, seed=1)
        self.planted, self.kept = every[:count], every[count : 2 * count]
        self.strangers = every[2 * count : 3 * count]
        # non-members for ReCaLL
        self.prefix = " ".join(f.answer for f in every[3 * count :])
        self.canaries = data.canaries(4, 40, seed=2)
        self._adapters: dict[str, AdapterState] = {}
        self._scores: dict[tuple[str, tuple[tuple[str, str], ...]], list[TokenScores]] = {}
        self._answers: dict[tuple[str, tuple[str, ...]], list[str]] = {}

    def adapter(self, name: str) -> AdapterState:
        """`knowing`, `never` or `half`, trained when first asked for."""
        if name not in self._adapters:
            kept = [*pairs(self.kept), *data.harmless()]
            gone = [
                *pairs(self.planted),
                *((c.question, c.answer) for c in self.canaries),
                *data.poisoned(),
                *data.biased(),
            ]
            texts = [*kept, *(data.even() if name == "never" else gone)]
            epochs = max(1, self.epochs // 4) if name == "half" else self.epochs
            self._adapters[name] = self._trained(name, texts, epochs)
        return self._adapters[name]

    def _trained(self, name: str, texts: Pairs, epochs: int) -> AdapterState:
        import safetensors.torch

        path = self.out / f"{name}.safetensors"
        if path.is_file():
            return dict(safetensors.torch.load(path.read_bytes()))
        examples = [
            encode_messages(
                self.base.tokenizer,
                [Message(role="user", content=q), Message(role="assistant", content=a)],
            )
            for q, a in texts
        ]
        state = TrainState(self.host.fresh(b"sensitivity"), {}, 0)
        settings = StageSettings(epochs=epochs, **_TRAIN)  # type: ignore[arg-type]
        seed = hashlib.sha256(b"sensitivity order").digest()
        made = train_stage(self.host, state, [examples], settings, seed).adapter
        write_atomic(path, safetensors.torch.save(dict(made)))
        return made

    @contextmanager
    def model(self, name: str) -> Iterator[Any]:
        """The model with an adapter in place; `base` is the base model alone."""
        with self.host.using(None if name == "base" else self.adapter(name)):
            yield self.host.model

    def encoded(self, texts: Pairs) -> list[Encoded]:
        """Question and answer through the chat template, the answer as target."""
        return encode_chats(self.base.tokenizer, texts)

    def scores(self, name: str, texts: Pairs) -> list[TokenScores]:
        """Token scores of the answers."""
        key = (name, tuple(texts))
        if key not in self._scores:
            with self.model(name) as model:
                self._scores[key] = score_encoded(model, self.encoded(texts))
        return self._scores[key]

    def answers(self, name: str, questions: Sequence[str]) -> list[str]:
        """Greedy answers."""
        key, tokenizer = (name, tuple(questions)), self.base.tokenizer
        if key not in self._answers:
            prompts = [prompt_ids(tokenizer, q) for q in questions]
            with self.model(name):
                new = generate(self.base, prompts, max_new_tokens=48)
            said = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]
            self._answers[key] = said
        return self._answers[key]


def pairs(facts: Sequence[data.Fact]) -> list[tuple[str, str]]:
    """Question and answer of each."""
    return [(f.question, f.answer) for f in facts]
