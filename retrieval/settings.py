"""What a store needs to know besides its documents. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class StoreSettings(BaseModel):
    """Settings of a store. The chunk settings are part of its recipe, since chunks decide vectors.

    `index`: `flat` (float32) and `flat16` (half precision) find the exact nearest chunks; `signs`
    (one bit a coordinate, the best candidates re-scored exactly) misses about one in five hundred
    of the nearest ten and is many times faster from some ten thousand chunks on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk_tokens: int = Field(default=64, ge=8, le=8192)
    chunk_overlap: int = Field(default=16, ge=0)
    default_group: str = Field(default="staff", min_length=1)
    index: Literal["signs", "flat", "flat16"] = "signs"

    @field_validator("index", mode="before")
    @classmethod
    def _successor(cls, value: object) -> object:
        # Workspaces of version 0.1.0 may name the codes that `signs` has replaced.
        return "signs" if value == "rabitq" else value

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.chunk_overlap >= self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap {self.chunk_overlap} must be below chunk_tokens {self.chunk_tokens}"
            )
        return self
