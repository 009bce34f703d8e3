"""Where a causal LM keeps its decoder layers, for any architecture that transformers loads.

Guarantees: layers are chosen by index, never by a part of a name (`layers.3` is a part of
`layers.30`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn as nn
from transformers.pytorch_utils import Conv1D

from llm_unlearn.errors import EnvironmentFailure


class Decoder(NamedTuple):
    """The stack of decoder layers and the name of its list (`layers`, `h`, ...)."""

    name: str
    layers: nn.ModuleList


def decoder(model: nn.Module) -> Decoder:
    """Find the list of decoder layers: the longest `ModuleList` with one entry per hidden layer.

    Raises:
        EnvironmentFailure: the architecture keeps its layers in another way.
    """
    config = getattr(model, "config", None)
    expected = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == expected:
            return Decoder(name.rsplit(".", 1)[-1], module)
    raise EnvironmentFailure(
        f"Cannot find the decoder layers of {type(model).__name__}.",
        "Choose a decoder-only causal LM.",
    )


def linear_names(layers: nn.ModuleList) -> list[str]:
    """Sorted last names of all linear maps inside the layers, such as `q_proj`; experts excluded."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in layers[0].named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    return sorted(names)


def uses_transposed_weights(layers: nn.ModuleList) -> bool:
    """Whether the linear maps are GPT-2's `Conv1D`, which stores its weight transposed."""
    return any(isinstance(module, Conv1D) for module in layers.modules())
