"""Run a causal LM in two parts: the frozen layers below the first adapted one, and the rest.

The hidden states that enter the first adapted layer never change while only layers above it train,
so they are computed once per document and every epoch runs the upper part alone.

Guarantees: both parts together compute what the whole model computes (tested on three
architectures); the lower part runs one document at a time, in the shape of that document, so that
its bits depend on that document alone. Works for any model whose decoder layers pass one hidden-state
tensor on; the layers themselves are not changed after the context ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):
    """Carries the hidden states out of a forward pass that need not go on."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@torch.inference_mode()
def lower_states(model: nn.Module, layers: nn.ModuleList, first: int, ids: Sequence[int]) -> Tensor:
    """The hidden states (T, H) that enter layer `first` for one document of T tokens."""

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = layers[first].register_forward_pre_hook(stop, with_kwargs=True)
    device = next(model.parameters()).device
    try:
        model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    except _Reached as reached:
        return reached.hidden[0].clone()
    finally:
        handle.remove()
    raise AssertionError("the forward pass never reached the first adapted layer")


@contextmanager
def upper_part(layers: nn.ModuleList, first: int) -> Iterator[list[Tensor]]:
    """Skip the layers below `first`; put the states (B, T, H) to start from into the yielded list.

    The list holds exactly one tensor whenever the model is called; with `first` 0 it is not used.
    """
    entering: list[Tensor] = []
    if first == 0:
        yield entering
        return

    def passes(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states

    def replace(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (hidden,) = entering
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    handle = layers[first].register_forward_pre_hook(replace, with_kwargs=True)
    for layer in layers[:first]:
        layer.forward = passes  # an instance attribute hides the method; the layer keeps its class
    try:
        yield entering
    finally:
        handle.remove()
        for layer in layers[:first]:
            del layer.forward
