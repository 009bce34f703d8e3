"""How a forgetting run goes: steps, rates, stopping rules. All of it is part of its recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class RunSettings(BaseModel):
    """Shared by all methods; what a method alone needs is in its own config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(default=10, ge=1, description="Passes over the texts to forget, at most.")
    batch_size: int = Field(
        default=4, ge=1, description="Texts to forget in one step, and as many to keep."
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="Of AdamW, times `strength`.")
    warmup_steps: int = Field(default=3, ge=0, description="Steps in which the rate rises.")
    clip: float = Field(default=1.0, gt=0, description="Longest gradient (L2 norm) of one step.")
    strength: float = Field(
        default=1.0,
        gt=0,
        description="Scales the rate, or the one move of a method that makes one.",
    )
    seed: int = Field(default=0, ge=0, description="Order of batches, noise, refusals.")
    check_every: int = Field(default=5, ge=1, description="Steps between two looks at the rules.")
    sample: int = Field(
        default=32, ge=1, description="Texts of each kind that a look measures at most."
    )
    rules: bool = Field(default=True, description="Whether the two rules below stop the run.")
    target: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Stop when the texts to forget are no likelier than this (mean probability); by "
        "default what the base model gives without the adapter, else a tenth of the start.",
    )
    utility_floor: float = Field(
        default=0.8,
        ge=0,
        lt=1,
        description="Go back when utility falls below this share of the start.",
    )
    retries: int = Field(
        default=2,
        ge=0,
        le=10,
        description="How often a run that went below the floor goes back and on at half the rate.",
    )
    max_tokens: int = Field(default=512, ge=8, description="Longest piece of a text.")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    threads: int = Field(default=2, ge=1, description="CPU threads; bits can depend on it.")

    @field_validator("learning_rate")
    @classmethod
    def _learns(cls, value: float) -> float:
        if value > 0.1:
            raise ValueError(
                "at a rate above 0.1 AdamW diverges and utility is gone at the first look; "
                "use 1e-5 to 2e-3"
            )
        return value
