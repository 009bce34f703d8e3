"""How much of given documents a model still gives back: three numbers, means over the documents.

- verbatim probability: geometric mean of the probability of each answer token, teacher-forced;
- extraction strength: share of the answer that greedy decoding gives back from the shortest
  sufficient prefix of it (Carlini et al. 2021);
- ROUGE-L recall of the greedy answer to the document's own prompt.

A conversation is prompted with its turns before the last answer, a text with its first third. Of a
document longer than `max_tokens` the first piece is probed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_unlearn.documents import Document
from llm_unlearn.eval.memorization import extraction_strength, verbatim_probability
from llm_unlearn.eval.overlap import rouge_l
from llm_unlearn.eval.passes import score_tokens
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import encode, render
from llm_unlearn.models.lora import AdapterHost, AdapterState

NAMES = ("verbatim probability", "extraction strength", "ROUGE-L recall")


@dataclass(frozen=True)
class Leakage:
    """What one state of the model gives back of each document, in the order of the documents.

    Attributes:
        probability, extraction, rouge: one value a document, in [0, 1].
        answers: the greedy answers.
    """

    probability: tuple[float, ...]
    extraction: tuple[float, ...]
    rouge: tuple[float, ...]
    answers: tuple[str, ...]

    def means(self) -> dict[str, float]:
        """Mean of each number, by the names in `NAMES`."""
        columns = (self.probability, self.extraction, self.rouge)
        return {name: float(np.mean(column)) for name, column in zip(NAMES, columns, strict=True)}


def probe(
    host: AdapterHost,
    adapter: AdapterState | None,
    documents: Sequence[Document],
    *,
    max_tokens: int,
    max_new_tokens: int = 64,
) -> Leakage:
    """Probe one adapter, or with None the base model alone, on documents it may have learned."""
    tokenizer = host.base.tokenizer
    examples = [encode(tokenizer, document, max_tokens)[0] for document in documents]
    prompts, references = zip(*(_split(host, d, max_tokens) for d in documents), strict=True)

    def measure() -> Leakage:
        scores = score_tokens(host.model, [e.ids for e in examples], [e.loss for e in examples])
        new = generate(host.base, prompts, max_new_tokens=max_new_tokens)
        answers = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]
        return Leakage(
            tuple(verbatim_probability(s) for s in scores),
            tuple(extraction_strength(s) for s in scores),
            tuple(
                rouge_l(answer, reference).recall
                for answer, reference in zip(answers, references, strict=True)
            ),
            tuple(answers),
        )

    with host.using(adapter):
        return measure()


def _split(host: AdapterHost, document: Document, max_tokens: int) -> tuple[list[int], str]:
    """Token ids to prompt with, and the words that should not come back."""
    tokenizer = host.base.tokenizer
    if document.messages:
        text = render(tokenizer, document.messages[:-1], prompt=True)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[-max_tokens:], document.messages[-1].content
    whole: list[int] = tokenizer(document.content, add_special_tokens=False)["input_ids"]
    whole = whole[:max_tokens]
    cut = max(1, len(whole) // 3)
    return whole[:cut], tokenizer.decode(whole[cut:])
