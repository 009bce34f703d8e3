"""Everything that is asked of one row of the table: one function, the same for every row.

Guarantees: the same texts in the same batches for all rows of a side, so that equal weights give equal
values to the last bit; a value for each text, in the order of the problem. Where several shards lose
something, each text is asked of the adapter whose shard learned it; what belongs to no shard is asked of
each of them and averaged.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from llm_unlearn.documents import Document, Message
from llm_unlearn.eval.benchmarks.choices import Item, answer_choices
from llm_unlearn.eval.encoding import Encoded, encode_spans
from llm_unlearn.eval.extraction import chance_within
from llm_unlearn.eval.knowledge import holds_keys
from llm_unlearn.eval.memorization import extraction_strength, log_probability, loss
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.passes import TokenScores, score_encoded
from llm_unlearn.eval.quantization import quantized
from llm_unlearn.eval.truth_ratio import truth_ratio
from llm_unlearn.experiments.fronts import Asking
from llm_unlearn.experiments.problem import (
    Attack,
    answer,
    paraphrase,
    perturbed,
    question,
)
from llm_unlearn.experiments.settings import ProbeSettings
from llm_unlearn.forget.data import read
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import Example, render
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.sisa.train import Prepared, StageSettings, TrainState, train_stage

Values = dict[str, list[float]]
_BATCH = 8


@dataclass(frozen=True)
class Asked:
    """The texts that one side is asked about; `places` says by id which shard learned a text."""

    forget: Sequence[Document]
    retain: Sequence[Document]
    general: Mapping[str, Sequence[Document]]
    strangers: Sequence[Document]
    choices: Mapping[str, Sequence[Item]]
    attacks: Sequence[Attack]
    places: Mapping[str, int]


@dataclass
class Prober:
    """Asks; what training keeps of its batches is kept from row to row, which changes no bit."""

    host: AdapterHost
    asked: Asked
    settings: ProbeSettings
    max_tokens: int
    _prepared: Prepared = field(default_factory=dict, repr=False)

    def measure(
        self,
        adapters: Mapping[int, Mapping[str, Tensor] | None],
        asking: Asking | None = None,
    ) -> Values:
        """All values of one row.

        Args:
            adapters: by shard; None is the base model alone.
            asking: a front; then only what can be asked through it is measured.
        """
        asked, found = self.asked, _Found()
        front = asking or Asking()
        for shard, adapter in sorted(adapters.items()):
            forget = [d for d in asked.forget if asked.places[d.id] == shard]
            retain = [d for d in asked.retain if asked.places[d.id] == shard]
            with self.host.using(adapter):
                self._known(found, "forget", forget, front)
                self._known(found, "retain", retain, front)
                for name, group in asked.general.items():
                    self._known(found, name, group, front)
                self._planted(found, front)
                if asking is None:
                    self._strangers(found)
                    for name, items in asked.choices.items():
                        verdicts = answer_choices(
                            self.host.model, self.host.base.tokenizer, items, batch_size=_BATCH
                        )
                        found.add(
                            f"{name} choice",
                            [str(i) for i in range(len(items))],
                            [v.right for v in verdicts],
                        )
            if asking is None and forget:
                self._relearned(found, adapter, shard, forget)
                self._rounded(found, adapter, forget)
        return found.values()

    # --- what is known

    def _known(self, found: _Found, name: str, group: Sequence[Document], front: Asking) -> None:
        """Probability, truth ratio, best of the wordings; free answers; for `forget` also extraction."""
        if not group:
            return
        pairs, owners = [], []
        for document in group:
            wordings = (answer(document), paraphrase(document), *perturbed(document))
            pairs += [(question(document), words) for words in wordings]
            owners.append(len(wordings))
        scores = iter(self._score(pairs, front))
        for document, count in zip(group, owners, strict=True):
            own = [next(scores) for _ in range(count)]
            losses = [loss(s) for s in own]
            wrong = losses[2:]
            probability = math.exp(-losses[0])
            if wrong and name not in ("forget", "retain"):  # as TOFU does where there are options
                probability /= probability + sum(math.exp(-each) for each in wrong)
            found.one(f"{name} probability", document.id, probability)
            if wrong:
                ratio = truth_ratio(losses[1], wrong, "geometric")
                found.one(f"{name} truth ratio", document.id, ratio)
                found.one(f"{name} best", document.id, float(losses[1] < min(wrong)))
            if name == "forget":
                log_p = log_probability(own[0])
                chance = chance_within(log_p, self.settings.tries)
                found.one("forget extraction", document.id, extraction_strength(own[0]))
                found.one("forget comes out", document.id, chance)
                found.one("forget score", document.id, -losses[0])
        some = group[: self.settings.generate]
        said = self._answers([question(d) for d in some], front)
        for document, text in zip(some, said, strict=True):
            found.one(f"{name} rouge", document.id, rouge_l(text, answer(document)).recall)

    def _strangers(self, found: _Found) -> None:
        group = self.asked.strangers
        if group:
            scores = self._score([(question(d), answer(d)) for d in group], Asking())
            found.add("stranger score", [d.id for d in group], [-loss(s) for s in scores])

    def _planted(self, found: _Found, front: Asking) -> None:
        attacks = self.asked.attacks
        if not attacks:
            return
        names = [str(i) for i in range(len(attacks))]
        for kind in ("triggered", "plain"):
            said = self._answers([getattr(a, kind) for a in attacks], front)
            hits = [holds_keys(text, a.keys) for text, a in zip(said, attacks, strict=True)]
            found.add(f"attack {kind}", names, hits)

    # --- what comes back

    def _relearned(
        self, found: _Found, adapter: Any, shard: int, forget: Sequence[Document]
    ) -> None:
        """Train on every other text, pass by pass, and ask for the rest (for itself, if it is alone)."""
        passes = self.settings.relearn_passes
        if not passes:
            return
        shown, asked = forget[::2], forget[1::2] or forget
        examples: list[Example] = list(read(self.host.base.tokenizer, shown, self.max_tokens))
        settings = StageSettings(
            epochs=1,
            batch_size=4,
            learning_rate=self.settings.relearn_rate,
            warmup=0.0,
            weight_decay=0.0,
            clip=1.0,
        )
        start = adapter if adapter is not None else self.host.fresh(b"relearn")
        state = TrainState(start, {}, 0)
        pairs = [(question(d), answer(d)) for d in asked]
        for number in range(1, passes + 1):
            seed = hashlib.sha256(f"relearn {shard} {number}".encode()).digest()
            state = train_stage(
                self.host, state, [examples], settings, seed, prepared=self._prepared
            )
            with self.host.using(state.adapter):
                known = [math.exp(-loss(s)) for s in self._score(pairs, Asking())]
            found.add(f"relearned {number}", [d.id for d in asked], known)

    def _rounded(self, found: _Found, adapter: Any, forget: Sequence[Document]) -> None:
        """Merge into the base, round to few bits, ask."""
        pairs = [(question(d), answer(d)) for d in forget]
        for bits in self.settings.bits:
            with self.host.merged(adapter), quantized(self.host.base.model, bits):
                known = [math.exp(-loss(s)) for s in self._score(pairs, Asking())]
            found.add(f"{bits} bits", [d.id for d in forget], known)

    # --- how it is asked

    def _score(self, pairs: Sequence[tuple[str, str]], front: Asking) -> list[TokenScores]:
        encoded = [self._encode(front.turns(asked), said) for asked, said in pairs]
        return score_encoded(self.host.model, encoded, _BATCH)

    def _encode(self, turns: Sequence[Message], said: str) -> Encoded:
        tokenizer = self.host.base.tokenizer
        said = said.strip()  # templates strip it
        text = render(tokenizer, [*turns, Message(role="assistant", content=said)])
        start = text.rfind(said)
        span = (start, start + len(said))
        return encode_spans(tokenizer, [text], [span], special_tokens=False)[0]

    def _answers(self, questions: Sequence[str], front: Asking) -> list[str]:
        tokenizer = self.host.base.tokenizer
        prompts = [
            tokenizer(render(tokenizer, front.turns(asked), prompt=True), add_special_tokens=False)[
                "input_ids"
            ]
            for asked in questions
        ]
        new = generate(self.host.base, prompts, max_new_tokens=self.settings.new_tokens)
        said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
        return [front.guarded(q, a) for q, a in zip(questions, said, strict=True)]


class _Found:
    """Values by name and text; a text that several adapters are asked about has their mean."""

    def __init__(self) -> None:
        self._all: dict[str, dict[str, list[float]]] = {}

    def one(self, name: str, text: str, value: float) -> None:
        self._all.setdefault(name, {}).setdefault(text, []).append(float(value))

    def add(self, name: str, texts: Sequence[str], values: Sequence[float]) -> None:
        for text, value in zip(texts, values, strict=True):
            self.one(name, text, value)

    def values(self) -> Values:
        return {
            name: [float(np.mean(found[text])) for text in sorted(found)]
            for name, found in sorted(self._all.items())
        }
