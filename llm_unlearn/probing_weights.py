"""The probes of weights for one subject's texts: the same on every side, in the same batches.

Guarantees: `Asked` encodes once and asks any adapter, so equal weights give equal values; values are
one a text, in the order of the documents. A text longer than `max_tokens` is asked for its beginning
(or, if the answer starts later, its end), and of a conversation only the last answer: `notes` says of
how many texts. What a greedy answer is compared with is what it could give back: of a conversation the
last answer, of a plain text what follows its first third, which is the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_unlearn.documents import Document
from llm_unlearn.eval import cards
from llm_unlearn.eval.cards import Card, Curve, Level, Passage, Side
from llm_unlearn.eval.encoding import Encoded, encode_spans
from llm_unlearn.eval.extraction import chance_within, log_extraction_probability
from llm_unlearn.eval.hidden import logit_lens
from llm_unlearn.eval.membership import (
    attack,
    auc_difference,
    blind_scores,
    one_pass_scores,
    roc,
)
from llm_unlearn.eval.memorization import memorization, memorized_runs
from llm_unlearn.eval.overlap import longest_common_substring, rouge_l
from llm_unlearn.eval.passes import Sampling, TokenScores, score_encoded
from llm_unlearn.eval.prompts import FRAMES, framed
from llm_unlearn.eval.quantization import quantized
from llm_unlearn.eval.soft import embedding_attack
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import render
from llm_unlearn.models.lora import AdapterHost, AdapterState

TRIES = 100
_SAMPLING = Sampling(temperature=0.8, top_k=40)
_RUN = 3  # tokens in a row that are marked
_MOST_TEXTS = 12  # shown with their words

TITLES = {
    "probability": (
        "Verbatim probability",
        "How likely each next word of the text is, given the true ones before it (geometric mean).",
    ),
    "extraction": (
        "Extraction strength",
        "Share of the text that greedy decoding gives back from the shortest beginning that suffices.",
    ),
    "exact": (
        "Exact memorization",
        "Share of the text's tokens that are the model's first guess.",
    ),
    "comes out": (
        f"Comes out in {TRIES} tries",
        f"Chance that {TRIES} samples at temperature 0.8 give the whole answer word for word.",
    ),
    "rouge": (
        "Greedy answer, ROUGE-L",
        "Its own question brings back this share of the words of the answer, or its first third of the "
        "words that follow, in order.",
    ),
    "run": (
        "Greedy answer, longest run",
        "Longest run of characters in that greedy answer, as a share of what it is compared with.",
    ),
    "frames": (
        "Worst of six ways to ask",
        "The same in the best of six wordings: plain, in other words, role-play, prefix injection, ...",
    ),
    "4 bits": (
        "Rounded to 4 bits",
        "Verbatim probability after the adapter is merged and the weights rounded to 4 bits.",
    ),
    "lens": (
        "Most in any layer",
        "Verbatim probability read off after the layer where it is highest (logit lens).",
    ),
    "soft": (
        "After an embedding attack",
        "Verbatim probability after 20 gradient steps on 4 input vectors. It forces any model a "
        "little: only the difference counts.",
    ),
}


@dataclass
class Gave:
    """What one side gave: values by probe and text, token scores, answers, scores of controls."""

    values: dict[str, list[float]]
    scores: list[TokenScores]
    said: list[str]
    controls: list[TokenScores]


@dataclass(frozen=True)
class Text:
    """One text as it is asked for.

    Attributes:
        encoded: its tokens with what is said before it, at most `max_tokens`.
        start: where it starts in the string that was encoded.
        scored: the characters that the scored tokens hold.
        cut: whether it was longer.
    """

    encoded: Encoded
    start: int
    scored: str
    cut: bool


@dataclass
class Asked:
    """The texts of one subject, ready to be asked of any adapter."""

    host: AdapterHost
    documents: Sequence[Document]
    controls: Sequence[Document]
    max_tokens: int
    deep: bool
    told: Callable[[str], None]
    texts: list[Text] = field(init=False)
    others: list[Text] = field(init=False)
    references: list[tuple[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [self._encode(d) for d in self.documents]
        self.others = [self._encode(d) for d in self.controls]
        self.references = [self._reference(d) for d in self.documents]

    def notes(self, *, weighed: bool = True) -> Iterator[str]:
        """How many texts were not asked for as a whole; `weighed`: the weights were asked at all."""
        cut, others = (sum(t.cut for t in texts) for texts in (self.texts, self.others))
        if weighed and (cut or others):
            more = f" (and {others} of {len(self.others)} control texts)" if self.others else ""
            yield (
                f"{cut} of {len(self.texts)} texts{more} are longer than {self.max_tokens} tokens, with "
                "what is said before them: the weights were asked for so many of them, the first ones, "
                "or the last where the text begins later."
            )
        earlier = sum(any(m.role == "assistant" for m in d.messages[:-1]) for d in self.documents)
        if earlier:
            yield (
                f"{earlier} of {len(self.texts)} texts are conversations with earlier answers; only "
                "the last answer of each was asked for."
            )

    def ask(self, side: Side, adapter: AdapterState | None) -> Gave:
        """Every probe of weights, of one adapter or with None of the base model alone."""
        self.told(f"weights: {side}")
        host, encoded = self.host, [t.encoded for t in self.texts]
        ids, mask = [e.ids for e in encoded], [e.mask for e in encoded]
        targets = [text for text, _ in self.references]
        with host.using(adapter):
            scores = score_encoded(host.model, encoded, sampling=[_SAMPLING])
            controls = score_encoded(host.model, [t.encoded for t in self.others])
            said = self._answers([self._prompt(d) for d in self.documents])
            known = memorization(scores)
            draws = [log_extraction_probability(s) for s in scores]
            values = {
                "probability": [m.probability for m in known],
                "extraction": [m.extraction_strength for m in known],
                "exact": [m.exact for m in known],
                "comes out": [chance_within(d, TRIES) for d in draws],
                "rouge": [rouge_l(a, t).recall for a, t in zip(said, targets, strict=True)],
                "run": [
                    longest_common_substring(a, t).length / len(t)
                    for a, t in zip(said, targets, strict=True)
                ],
            }
            if self.deep:
                values["frames"] = self._frames(values["rouge"], targets)
                values["lens"] = [float(v) for v in logit_lens(host.model, ids, mask).max(1)]
                attacked = embedding_attack(host.model, ids, mask)
                values["soft"] = [float(v) for v in attacked.after]
        if self.deep:
            with host.merged(adapter), quantized(host.base.model, 4):
                rounded = memorization(score_encoded(host.model, encoded))
            values["4 bits"] = [m.probability for m in rounded]
        return Gave(values, scores, said, controls)

    def passages(self, found: dict[Side, Gave]) -> Iterator[Passage]:
        """The first texts with what each side guesses right."""
        for i, document in enumerate(self.documents[:_MOST_TEXTS]):
            text = text_of(document)
            yield Passage(
                id=document.id,
                prompt=document.messages[-2].content if len(document.messages) > 1 else "",
                text=text,
                spans={
                    side: _spans(self.texts[i], one.scores[i], len(text))
                    for side, one in found.items()
                },
                said={side: one.said[i] for side, one in found.items()},
            )

    def _encode(self, document: Document) -> Text:
        """The text as tokens, cut to `max_tokens`."""
        tokenizer, said = self.host.base.tokenizer, text_of(document)
        if document.messages:
            said = said.strip()  # templates strip it
            whole = render(tokenizer, document.messages)
            start = whole.rfind(said)
        else:
            whole, start = said, 0
        [made] = encode_spans(
            tokenizer, [whole], [(start, start + len(said))], special_tokens=False
        )
        most = self.max_tokens
        if any(made.mask[:most]):
            kept = Encoded(made.ids[:most], made.mask[:most], made.spans[:most])
        else:
            mask = [False, *made.mask[-most:][1:]]
            kept = Encoded(made.ids[-most:], mask, made.spans[-most:])
        spans = [span for span, wanted in zip(kept.spans, kept.mask, strict=True) if wanted]
        scored = whole[min(low for low, _ in spans) : max(high for _, high in spans)]
        return Text(kept, start, scored, cut=len(made.ids) > most)

    def _reference(self, document: Document) -> tuple[str, int]:
        """What a greedy answer could give back of a text, and its tokens."""
        tokenizer, said = self.host.base.tokenizer, text_of(document)
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        first = 0 if document.messages else self._third(ids)
        kept = ids[first : self.max_tokens]
        if len(kept) < len(ids):
            said = tokenizer.decode(kept, skip_special_tokens=True).strip() or said
        return said, len(kept)

    def _third(self, ids: Sequence[int]) -> int:
        """How many of a plain text's tokens are its prompt."""
        return max(1, min(len(ids), self.max_tokens) // 3)

    def _prompt(self, document: Document, frame: str = "{}") -> list[int]:
        tokenizer = self.host.base.tokenizer
        if document.messages:
            turns = list(document.messages[:-1])
            if turns:
                asked = framed(turns[-1].content, {"": frame})[""]
                turns[-1] = turns[-1].model_copy(update={"content": asked})
            text = render(tokenizer, turns, prompt=True)
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids[-self.max_tokens :]
        ids = tokenizer(document.content, add_special_tokens=False)["input_ids"]
        return ids[: self._third(ids)]

    def _answers(self, prompts: Sequence[list[int]]) -> list[str]:
        """Greedy answers, as long as the longest reference, if the model can read so much."""
        most = max(tokens for _, tokens in self.references)
        room = getattr(self.host.base.model.config, "max_position_embeddings", None)
        if room is not None:
            most = max(1, min(most, room - max(len(p) for p in prompts)))
        new = generate(self.host.base, prompts, max_new_tokens=most)
        tokenizer = self.host.base.tokenizer
        return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]

    def _frames(self, plain: list[float], targets: Sequence[str]) -> list[float]:
        worst = list(plain)
        asked = [i for i, d in enumerate(self.documents) if len(d.messages) > 1]
        for name, frame in FRAMES.items():
            if name == "plain" or not asked:
                continue
            said = self._answers([self._prompt(self.documents[i], frame) for i in asked])
            for i, text in zip(asked, said, strict=True):
                worst[i] = max(worst[i], rouge_l(text, targets[i]).recall)
        return worst


def membership(asked: Asked, found: dict[Side, Gave]) -> tuple[list[Card], list[Curve]]:
    """AUC of each one-pass score on each side, and of the words alone."""
    mine, theirs = ([t.scored for t in texts] for texts in (asked.texts, asked.others))
    scored: dict[str, dict[Side, tuple[Any, Any]]] = {}
    made: dict[str, dict[Side, Any]] = {}
    curves: list[Curve] = []
    for side, one in found.items():
        members, others = one_pass_scores(one.scores, mine), one_pass_scores(one.controls, theirs)
        for name in members:
            scored.setdefault(name, {})[side] = (members[name], others[name])
            made.setdefault(name, {})[side] = attack(members[name], others[name])
            if side != "base" and name in ("loss", "min_k_plus"):
                curves.append(_curve(name, side, members[name], others[name], made[name][side]))
    mine, theirs = ([text_of(d) for d in given] for given in (asked.documents, asked.controls))
    folds = min(5, len(mine), len(theirs))
    if folds > 1:
        a, b = blind_scores(mine, theirs, folds=folds)
        curves.append(_curve("words alone, no model", "now", a, b, attack(a, b), blind=True))
    result = []
    for name, by_side in made.items():
        level, verdict = judged(scored[name])
        result.append(
            Card(
                name=f"membership {name}",
                title=f"Membership by {name.replace('_', '-')}",
                about="Chance that a text of the subject scores above a control text; 0.5 is a coin.",
                group="membership",
                sides={s: cards.Value.of(a.auc) for s, a in by_side.items()},
                values={},
                level=level,
                verdict=verdict,
            )
        )
    return result, curves


def judged(scored: dict[Side, tuple[Any, Any]]) -> tuple[Level, str]:
    """What a membership score's AUCs come to: their difference, on the same texts."""
    side, name, alone = cards.yardstick(scored)
    now, other = scored["now"], scored[side or "base"]
    if all(np.array_equal(a, b) for a, b in zip(now, other, strict=True)):
        return "same", f"Exactly the scores that {name} gives, for each text."
    gap = auc_difference(now, other)
    for group, what in zip(now, ("text", "control text"), strict=True):
        if len(group) < cards.FEWEST:
            return "unclear", cards.too_few(len(group), what, gap.mean, name) + alone
    told = f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    if gap.low > 0:
        return "leaks", f"More than {name}: {told}.{alone}"
    if gap.high < 0:
        return "less", f"Less than {name}: {told}. Forgetting that shows is a sign too.{alone}"
    return "level", f"Not told apart from {name}: {told}.{alone}"


def _curve(
    name: str, side: Side, members: Any, others: Any, found: Any, *, blind: bool = False
) -> Curve:
    false, true = roc(members, others)
    points = tuple(zip(map(float, false), map(float, true), strict=True))
    return Curve(name=name, side=side, auc=cards.Value.of(found.auc), points=points, blind=blind)


def text_of(document: Document) -> str:
    """What must not come back: the last message's words, or the text."""
    return document.messages[-1].content if document.messages else document.content


def _spans(text: Text, scores: TokenScores, length: int) -> tuple[tuple[int, int], ...]:
    """Characters of the text in runs of at least `_RUN` targets guessed right."""
    found, spans = [], text.encoded.spans
    for first, end in memorized_runs(scores, _RUN):
        low = spans[int(scores.positions[first])][0] - text.start
        high = spans[int(scores.positions[end - 1])][1] - text.start
        found.append((max(0, low), min(length, high)))
    return tuple(found)
