"""What a forgetting run says of itself: recipe, digests, what was measured, why it stopped.

Guarantees: a plain value that holds no text and no name of a document; equal runs give equal records but
for the seconds.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llm_unlearn.forget.settings import RunSettings

Stop = Literal["forgotten", "utility", "diverged", "steps", "one move", "no effect"]
Verdict = Literal["forgotten", "partly", "unmeasured", "failed"]
_PACKAGES = ("llm-unlearn", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Plain):
    """Mean answer probability of each kind of text; `utility` is that of what is kept where no other
    texts were given for it; None without any."""

    forget: float
    retain: float | None
    utility: float | None


class Look(_Plain):
    """One look at the rules after so many steps (or at so much of one move)."""

    at: float
    loss: float | None
    measured: Measured


class Record(_Plain):
    """The whole account of one run.

    `verdict`: `forgotten` reached the target with utility above its floor; `partly` kept utility and
    did not reach it; `failed` has nothing to show that keeps utility; `unmeasured` had no text to measure
    utility on, so nothing is claimed of it. `tokens` went through a forward pass with a gradient.
    """

    method: str
    citation: str
    method_settings: dict[str, Any]
    settings: RunSettings
    weights: Literal["adapter", "full"]
    model: str
    model_digest: str
    inputs: str  # SHA-256 over token ids and loss marks
    start: str  # SHA-256 of the weights before
    end: str  # and after
    texts: dict[str, int]
    target: float
    before: Measured
    after: Measured
    looks: tuple[Look, ...]
    steps: int
    stop: Stop
    verdict: Verdict
    report: dict[str, float]
    versions: dict[str, str]
    seconds: float
    tokens: int


def versions() -> dict[str, str]:
    """Versions of everything that decides bits."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    found["python"] = platform.python_version()
    return found
