"""What one row measured in one seed, in a file of its own.

Guarantees: a cell is whole or absent; the folder belongs to one experiment, named by the digest of all
that decides its numbers, and another's is refused. No text is in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.files import os_errors, write_atomic

OWNER = "experiment.json"


class Cell(BaseModel):
    """One row in one seed.

    Attributes:
        values: by probe, one value a text.
        weights: digest of the adapters, by shard; empty for what has no weights of its own.
        seconds, tokens: its price; None where it has none or an interruption hid it.
        runs: of each forgetting run its verdict, why it stopped, and what else it reports.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: str
    name: str
    kind: str
    seed: int
    values: dict[str, list[float]]
    weights: dict[int, str] = {}
    seconds: float | None = None
    tokens: int | None = None
    runs: list[dict[str, Any]] = []


def claim(out: Path, decides: dict[str, Any]) -> None:
    """Make the folder this experiment's, or see that it is.

    Raises:
        InputError: it holds something else.
    """
    text = json.dumps(decides, sort_keys=True, indent=1) + "\n"
    path = out / OWNER
    with os_errors(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(
                f"{out} holds results of an experiment with other data or settings.",
                "Choose another --out.",
            )
        return
    held = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if held:
        raise InputError(f"{out} holds {held[0]} already.", "Choose a new directory.")
    write_atomic(path, text.encode(), mode=0o644)


def kept(
    out: Path, seed: int, side: str, name: str, decides: Any, make: Callable[[], Cell]
) -> Cell:
    """A cell that is there already, or a new one, durable when this returns.

    Args:
        decides: what decides this cell besides the experiment, such as a method's settings.
    """
    mark = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]
    plain = re.sub(r"[^\w.-]+", "-", name)
    path = out / "cells" / f"{seed}.{side}.{plain}.{mark}.json"
    if path.is_file():
        try:
            return Cell.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise Damaged(f"{path} is no cell.", "Remove it; it is measured again.") from error
    made = make()
    with os_errors(f"write {path}"):
        path.parent.mkdir(exist_ok=True)
    write_atomic(path, (made.model_dump_json(indent=1) + "\n").encode(), mode=0o644)
    return made
