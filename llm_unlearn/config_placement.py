"""By what subjects are placed into shards and slices: the settings, and which of them can hold.

Guarantees: a rule that exists is consistent by itself; `check_room` says whether it fits a number of
shards and slices. What the rules mean is in `sisa/layout.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("YAML reads yes, no, on and off as true and false; write a number")
    return value


Real = Annotated[float, BeforeValidator(_not_bool)]
"""A number that was not written as yes or no."""


class Settings(BaseModel):
    """What every part of the settings has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def band(size: int, number: int, classes: int) -> tuple[int, int]:
    """The first and the last but one of `size` places that one of so many classes of risk has.

    With C classes, class c has the places from floor(c size / C) to floor((c + 1) size / C).

    >>> [band(8, c, 3) for c in range(3)]
    [(0, 2), (2, 5), (5, 8)]
    """
    return number * size // classes, (number + 1) * size // classes


class PlacementConfig(Settings):
    """By what a document's shard and slice are chosen: always from its own data alone."""

    shard_by: Literal["hash", "group", "risk"] = Field(
        default="hash",
        description="A subject's shard: by keyed hash, by the group or by the risk that it declares.",
    )
    slice_by: Literal["hash", "risk"] = Field(
        default="hash",
        description="A subject's slice: by keyed hash, or by declared risk, the likeliest to go last.",
    )
    group_by: Literal["tag", "acl"] = Field(
        default="tag",
        description="Where a document declares its group: in a tag, or as its one access group.",
    )
    group_tag: str = Field(
        default="group",
        min_length=1,
        pattern=r"^[^:\s]+$",
        description="With group_by: tag, the tag's prefix: owner reads the group from owner:acme.",
    )
    groups: dict[str, Annotated[int, Field(ge=0, strict=True)]] = Field(
        default={},
        description="Groups that have a shard for themselves, as name: shard. Dropping such a group "
        "is the removal of its adapter.",
    )
    unnamed_groups: Literal["hash", "refuse"] = Field(
        default="hash",
        description="Any other group, or none: by keyed hash over the other shards, or refused.",
    )
    risk_cuts: tuple[Real, ...] = Field(
        default=(),
        description="Where one class of risk ends and the next begins, rising; a document declares "
        "its risk in a tag such as risk:0.2, and 0 without one.",
    )

    @property
    def asks_risk(self) -> bool:
        """Whether a rule looks at the declared risk."""
        return "risk" in (self.shard_by, self.slice_by)

    @property
    def asks(self) -> bool:
        """Whether a rule looks at anything that a document declares."""
        return self.asks_risk or self.shard_by == "group"

    @property
    def own_shards(self) -> frozenset[str]:
        """The access groups that have a shard of their own, and may therefore be trained on."""
        by_access = self.shard_by == "group" and self.group_by == "acl"
        return frozenset(self.groups) if by_access else frozenset()

    @field_validator("risk_cuts")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or not all(0 < cut <= 1 for cut in value):
            raise ValueError("not rising above 0 and up to 1; write cut-points such as [0.1, 0.5]")
        return value

    def slice_bands(self, slices: int) -> tuple[int, ...]:
        """How many of a shard's slices each class of risk has; all, where risk places no slices.

        >>> PlacementConfig(slice_by="risk", risk_cuts=(0.2,)).slice_bands(5)
        (2, 3)
        """
        if self.slice_by != "risk":
            return (slices,)
        classes = len(self.risk_cuts) + 1
        bands = (band(slices, c, classes) for c in range(classes))
        return tuple(end - begin for begin, end in bands)

    def check_room(self, shards: int, slices: int) -> None:
        """See that groups and classes of risk fit into so many shards and slices.

        Raises:
            ValueError: they do not; the remedy stands after the semicolon.
        """
        classes = len(self.risk_cuts) + 1
        if self.asks_risk and classes == 1:
            raise ValueError("by risk without cut-points; set risk_cuts, such as [0.2]")
        for rule, places, what in (
            (self.shard_by, shards, "shards"),
            (self.slice_by, slices, "slices"),
        ):
            if rule == "risk" and places < classes:
                raise ValueError(
                    f"{classes} classes of risk do not fit into {places} {what}; give more {what} "
                    "or fewer risk_cuts"
                )
        if self.shard_by != "group":
            return
        outside = {group: shard for group, shard in self.groups.items() if shard >= shards}
        if outside:
            group, shard = next(iter(outside.items()))
            raise ValueError(
                f"there is no shard {shard} for the group {group!r}; choose 0 to {shards - 1}, or "
                "raise training.shards"
            )
        named = set(self.groups.values())
        if len(named) == shards and self.unnamed_groups == "hash":
            raise ValueError(
                "every shard belongs to a group and none is left for the others; add a shard, or "
                "set unnamed_groups: refuse"
            )
        if self.unnamed_groups == "refuse" and not named:
            raise ValueError("no group is named, so everything would be refused; set groups")
        if self.own_shards and len(named) < len(self.groups):
            raise ValueError(
                "two access groups share a shard, and each would be answered from the other's "
                "documents; give each its own"
            )
