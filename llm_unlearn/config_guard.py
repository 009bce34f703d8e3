"""The settings of the guard: what answers may repeat of texts that are still there."""

from __future__ import annotations

from pydantic import Field

from llm_unlearn.config_placement import Real, Settings


class GuardRule(Settings):
    """Limits for documents of some licences, towards callers of some groups."""

    licenses: tuple[str, ...] = Field(
        default=(), description="Licences that it protects; empty for any."
    )
    groups: tuple[str, ...] = Field(
        default=(), description="Callers with one of these groups; empty for any."
    )
    verbatim_words: int | None = Field(
        default=12,
        ge=1,
        strict=True,
        description="Longest run of words that may be repeated; null for no limit.",
    )
    verbatim_share: Real = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Largest part of a work that may be repeated in runs of four words and more.",
    )
    near: Real | None = Field(
        default=None,
        gt=0,
        le=1,
        description="End an answer of which so large a part follows the work in order; null never.",
    )


class GuardConfig(Settings):
    """What the server guards. The first rule for a document's licence and the caller's groups counts."""

    rules: tuple[GuardRule, ...] = Field(
        default=(),
        description="Limits on repeating documents, such as {licenses: [all-rights-reserved], "
        "verbatim_words: 12}. Without a rule a document may be repeated.",
    )
    copied: Real | None = Field(
        default=None,
        gt=0,
        le=1,
        description="End an answer that gives back so large a part of its passages; null never.",
    )
    refuse_dumps: bool = Field(
        default=False,
        strict=True,
        description="Decline questions that want passages or instructions given back whole.",
    )
    drop_instructions: bool = Field(
        default=True,
        strict=True,
        description="Leave sentences that speak to the model out of the passages it reads.",
    )
    tombstones: bool = Field(
        default=True,
        strict=True,
        description="Decline conversations that bring a text along that was taken down.",
    )
    system: str = Field(
        default="", max_length=4096, description="What the model is told before every conversation."
    )
