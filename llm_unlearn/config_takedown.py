"""The settings of takedowns: what counts as a copy, and what a receipt is measured beside."""

from __future__ import annotations

from pydantic import Field

from llm_unlearn.config_placement import Real, Settings


class TakedownConfig(Settings):
    """Which other documents count as copies of the one that a demand names, and what is measured."""

    near_duplicate: Real = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Jaccard similarity of word shingles that makes a near-duplicate.",
    )
    noisy: Real = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Share of the longer text's letters in shared passages that makes a "
        "near-duplicate, such as a scan with errors.",
    )
    containment: Real = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of the shorter text within the longer one that makes a quotation.",
    )
    quotation_words: int = Field(
        default=30,
        ge=8,
        strict=True,
        description="So many words in a row in common are a quotation, wherever they stand.",
    )
    paraphrase: Real = Field(
        default=0.82,
        gt=0,
        le=1,
        description="Cosine that makes a document one to review; never deleted by itself.",
    )
    second_look: Real = Field(
        default=0.65,
        gt=0,
        le=1,
        description="Cosine at which a document's sentences and turns are compared one by one: half of "
        "the sentences close, or one turn, makes it one to review too.",
    )
    shingle_words: int = Field(
        default=4, ge=1, le=32, strict=True, description="Words in one shingle."
    )
    fence_flagged: bool = Field(
        default=True,
        strict=True,
        description="Keep possible paraphrases out of every answer until a person has decided.",
    )
    never_had: bool = Field(
        default=False,
        description="Build the touched shards once more, in memory, from the base model and the documents "
        "that stay, so that the receipt shows its probes beside a model that never had the text. Costs the "
        "whole training of these shards.",
    )
