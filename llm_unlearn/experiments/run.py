"""An experiment from its config file to its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_unlearn.experiments.settings import (
    CompareConfig,
    HardnessConfig,
    SeparationConfig,
    kind_of,
    read,
)
from llm_unlearn.experiments.summary import Row

Told = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a run found: plain values for JSON, rows for people, and what should hold and does not."""

    plain: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def run(
    path: Path,
    out: Path,
    data: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    *,
    told: Told = lambda _: None,
) -> Result:
    """Run an experiment, or what is missing of it, and write its results to `out`.

    Args:
        path: its config file.
        data: paths of data by name.
        overrides: `key=value`, on top of the file.
        told: of each step.

    Raises:
        InputError: the config, the data or the folder do not fit.
    """
    kind = kind_of(path)
    if kind == "hardness":
        return _hardness(read(path, HardnessConfig, data or {}, overrides), out, told)
    if kind == "separation":
        return _separation(read(path, SeparationConfig, data or {}, overrides), out, told)
    from llm_unlearn.experiments.compare import compare
    from llm_unlearn.experiments.summary import plain, rows
    from llm_unlearn.experiments.table import write

    config = read(path, CompareConfig, data or {}, overrides)
    found = compare(config, out, home=path.parent, told=told)
    made = rows(found)
    write(found, made, out)
    return Result(plain(found, made), made, found.unequal())


def _hardness(config: HardnessConfig, out: Path, told: Told) -> Result:
    from llm_unlearn.experiments.hardness import hardness, summary, write

    plain = summary(hardness(config, out, told=told))
    write(plain, out)
    return Result(plain)


def _separation(config: SeparationConfig, out: Path, told: Told) -> Result:
    from llm_unlearn.experiments.separation import separation, summary, write

    plain = summary(separation(config, out, told=told))
    write(plain, out)
    return Result(plain)
