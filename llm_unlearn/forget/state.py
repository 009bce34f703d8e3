"""An unfinished run in one file, so that it goes on to the same bits.

Guarantees: written whole or not at all; belongs to one run, named by the digest of all that decides it;
another run's is refused, a damaged one too. It holds weights in the clear, as the result does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.files import write_atomic


@dataclass(frozen=True)
class Unfinished:
    """Weights now, AdamW's moments, the last weights that kept utility, and the plain rest."""

    now: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    plain: dict[str, Any]


def save(path: Path, run: str, state: Unfinished) -> None:
    """Write it durably.

    Args:
        run: digest of all that decides the run.
    """
    import safetensors.torch

    groups = {"n": state.now, "a": state.average, "s": state.square, "k": state.kept}
    tensors = {
        f"{key}.{name}": tensor.contiguous()
        for key, group in groups.items()
        for name, tensor in group.items()
    }
    header = {"run": run, "plain": json.dumps(state.plain)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, safetensors.torch.save(tensors, header))


def load(path: Path, run: str) -> Unfinished | None:
    """Read it; None when there is none.

    Raises:
        InputError: it belongs to a run with other settings, texts or weights.
        Damaged: it is not what was written.
    """
    import safetensors.torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
        plain = json.loads(header["plain"])
        owner = header["run"]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise Damaged(
            f"The unfinished run in {path} cannot be read.", "Remove the file and begin again."
        ) from error
    if owner != run:
        raise InputError(
            f"{path} holds an unfinished run with other settings, texts or weights.",
            "Choose another --out, or remove the file to begin anew.",
        )

    def group(key: str) -> dict[str, Tensor]:
        return {n[2:]: t for n, t in tensors.items() if n.startswith(key + ".")}

    return Unfinished(group("n"), group("a"), group("s"), group("k"), plain)


def moments(
    optimizer: torch.optim.AdamW, named: Iterable[tuple[str, torch.nn.Parameter]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both moments of the parameters that have any, by name, on the processor."""
    average, square = {}, {}
    for name, parameter in named:
        found = optimizer.state.get(parameter)
        if found:  # a weight below which nothing is predicted has none
            average[name] = found["exp_avg"].cpu().clone()
            square[name] = found["exp_avg_sq"].cpu().clone()
    return average, square


def restore(
    optimizer: torch.optim.AdamW,
    named: Iterable[tuple[str, torch.nn.Parameter]],
    found: Unfinished,
    steps: int,
) -> None:
    """Put the moments back, as they were after so many steps."""
    for name, parameter in named:
        if name in found.average:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": found.average[name].clone().to(parameter.device),
                "exp_avg_sq": found.square[name].clone().to(parameter.device),
            }
