"""The settings of the server: how much it takes on, and how long it waits for anyone."""

from __future__ import annotations

from pydantic import Field

from llm_unlearn.config_placement import Real, Settings


class ServingConfig(Settings):
    """What `llm-unlearn serve` takes on at once, and when it gives up on a caller."""

    rows: int = Field(
        default=16,
        ge=1,
        strict=True,
        description="Answers that decode together in one batch; the others wait in the queue.",
    )
    queue: int = Field(
        default=128,
        ge=1,
        strict=True,
        description="Answers that may wait; one more is told to come again (429).",
    )
    prefill_tokens: int = Field(
        default=2048,
        ge=16,
        strict=True,
        description="Tokens of new prompts read in one pass: while they are, nobody else gets a token.",
    )
    cache_tokens: int = Field(
        default=32768,
        ge=16,
        strict=True,
        description="Tokens that answers decoding together may hold: their number times the longest.",
    )
    max_new_tokens: int = Field(
        default=512,
        ge=1,
        strict=True,
        description="Longest answer that a caller may ask for; answering.max_new_tokens if they do not.",
    )
    max_body: int = Field(
        default=1 << 20,
        ge=1024,
        strict=True,
        description="Largest body of a request in bytes (413).",
    )
    in_flight: int = Field(
        default=256,
        ge=1,
        strict=True,
        description="Requests under way at once; one more is told to come again (429).",
    )
    rate: int = Field(
        default=600,
        ge=1,
        strict=True,
        description="Requests a minute of one API key, in a bucket of as many (429).",
    )
    answer_seconds: Real = Field(
        default=120.0, gt=0, description="Longest time from a request to its last word (504)."
    )
    client_seconds: Real = Field(
        default=20.0,
        gt=0,
        description="Longest wait for a client: for its whole header, its whole body, or to take "
        "what is sent.",
    )
    shutdown_seconds: Real = Field(
        default=30.0, gt=0, description="How long answers under way may go on after a stop."
    )
