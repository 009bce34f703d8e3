"""The settings of the guard: what answers may repeat of texts that are still there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pydantic import Field

from llm_unlearn.config_placement import Real, Settings

_SHARED: Final = ("copied", "refuse_dumps", "drop_instructions", "system")
"""What a rule may set in place of the section's own."""


class GuardRule(Settings):
    """Limits for documents of some licences, towards callers of some groups.

    `copied`, `refuse_dumps`, `drop_instructions` and `system` that are null are as the section says.
    """

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
    copied: Real | None = Field(default=None, gt=0, le=1, description="The section's, for these.")
    refuse_dumps: bool | None = Field(
        default=None, strict=True, description="The section's, where these are drawn on."
    )
    drop_instructions: bool | None = Field(
        default=None, strict=True, description="The section's, for passages of these."
    )
    system: str | None = Field(
        default=None, max_length=4096, description="The section's, where these are drawn on."
    )

    def covers(self, license: str, groups: Collection[str]) -> bool:
        """Whether it is for documents of a licence, towards a caller of these groups."""
        return (not self.licenses or license in self.licenses) and (
            not self.groups or not set(self.groups).isdisjoint(groups)
        )


class GuardConfig(Settings):
    """What the server guards. The first rule for a document's licence and the caller's groups counts."""

    rules: tuple[GuardRule, ...] = Field(
        default=(),
        description="Limits on repeating documents, such as {licenses: [all-rights-reserved], "
        "verbatim_words: 12}; the first for a document's licence and the caller's groups counts. It may "
        "also set copied, refuse_dumps, drop_instructions and system. Without a rule a document may "
        "be repeated.",
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
    tombstones_spare: tuple[str, ...] = Field(
        default=(), description="Callers with one of these groups may bring such a text along."
    )
    system: str = Field(
        default="", max_length=4096, description="What the model is told before every conversation."
    )

    def rule(self, license: str | None, groups: Collection[str]) -> GuardRule:
        """What holds for a document towards a caller, with everything that was left out filled in.

        Args:
            license: the document's; None where an answer draws on no document, so that no rule holds.
        """
        found = GuardRule(verbatim_words=None)
        if license is not None:
            found = next((r for r in self.rules if r.covers(license, groups)), found)
        own = {n: getattr(self, n) for n in _SHARED if getattr(found, n) is None}
        return found.model_copy(update=own)
