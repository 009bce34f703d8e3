"""What forgetting may change: a LoRA adapter over a frozen base, or a model's own decoder layers.

Guarantees: both have one face, so every method works on both; state goes in and out by name, float32 on
the CPU. Full weights means all weights of the decoder layers from the first chosen one on: embeddings,
final norm and LM head stay, so that the reference's distributions can be had again from small hidden
states without a second model. An adapter read from a folder must be plain LoRA over the top layers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.files import os_errors, write_atomic
from llm_unlearn.models.causal import CausalModel
from llm_unlearn.models.layers import decoder, linear_names
from llm_unlearn.models.lora import AdapterHost, LoraShape

State = dict[str, Tensor]


class Weights(Protocol):
    """The trainable part of a model; `models.lora.AdapterHost` is one too."""

    @property
    def base(self) -> CausalModel:
        """The model with its tokenizer."""

    @property
    def model(self) -> Any:
        """What is called."""

    @property
    def layers(self) -> nn.ModuleList:
        """Its decoder layers."""

    @property
    def first_layer(self) -> int:
        """The first layer that can change."""

    @property
    def lock(self) -> Any:
        """Held while the weights are used."""

    @property
    def names(self) -> list[str]:
        """Names of the trainable tensors, sorted."""

    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors in the order of `names`."""

    def state(self) -> State:
        """A copy of them, float32 on the CPU."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put values in place."""


class FullWeights:
    """All weights of the top decoder layers of a model, kept in float32.

    Raises:
        InputError: the model has fewer layers.
    """

    def __init__(self, base: CausalModel, top_layers: int | None = None) -> None:
        found = decoder(base.model)
        count = len(found.layers)
        top = count if top_layers is None else top_layers
        if not 1 <= top <= count:
            raise InputError(
                f"{top} layers are to change, but {base.reference} has {count}.",
                f"Choose 1 to {count}, or leave it out for all.",
            )
        base.model.float()  # float32 throughout: a step of 1e-5 vanishes in bfloat16
        self.base = base
        self.model = base.model
        self.layers = found.layers
        self.first_layer = count - top
        self.lock = threading.RLock()
        self._parameters = {
            f"{i}.{name}": parameter
            for i in range(self.first_layer, count)
            for name, parameter in found.layers[i].named_parameters()
        }
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    @property
    def names(self) -> list[str]:
        """Layer number and name within the layer, sorted."""
        return sorted(self._parameters)

    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors in the order of `names`."""
        return [self._parameters[name] for name in self.names]

    def state(self) -> State:
        """A copy, float32 on the CPU."""
        return {name: self._parameters[name].detach().to("cpu").clone() for name in self.names}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put values in place."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[name])


def without(state: Mapping[str, Tensor]) -> State:
    """The adapter of the same shape that changes nothing: B is zero."""
    return {n: t.clone() if ".lora_A." in n else torch.zeros_like(t) for n, t in state.items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, shapes and float32 values."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(f"{name}\0{tuple(state[name].shape)}\0".encode())
        total.update(state[name].float().contiguous().numpy().tobytes())
    return total.hexdigest()


def adapter_shape(folder: Path, base: CausalModel) -> LoraShape:
    """Rank, scale and depth of the adapter in a PEFT folder.

    Raises:
        InputError: no such folder, or an adapter of another kind.
    """
    found = _config(folder)
    odd = [
        key
        for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
        if found.get(key)
    ]
    if found.get("peft_type") != "LORA" or odd or found.get("bias", "none") != "none":
        what = ", ".join(odd) or f"{found.get('peft_type')}, bias {found.get('bias')}"
        raise InputError(
            f"The adapter in {folder} is not plain LoRA ({what}).",
            "Merge it into the model and forget with --full.",
        )
    layers = decoder(base.model).layers
    count = len(layers)
    chosen = found.get("layers_to_transform")
    chosen = (
        list(range(count)) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    )
    first = min(chosen, default=0)
    if sorted(chosen) != list(range(first, count)):
        raise InputError(
            f"The adapter in {folder} changes layers {chosen}, not the top ones of {count}.",
            "Merge it into the model and forget with --full.",
        )
    return LoraShape(int(found["r"]), int(found["lora_alpha"]), count - first)


def read_adapter(folder: Path, host: AdapterHost, seed: bytes) -> State:
    """The tensors of a PEFT folder; maps that it lacks begin as a fresh adapter, which changes nothing.

    Raises:
        InputError: tensors that do not fit this model.
        EnvironmentFailure: no safetensors file.
    """
    import safetensors.torch

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise EnvironmentFailure(
            f"There is no adapter_model.safetensors in {folder}.",
            "Save it with PEFT's save_pretrained (pickled adapters are never read).",
        )
    state = host.fresh(seed)
    try:
        read = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises its own class, and OSError, and ValueError
        raise InputError(f"{path} cannot be read: {error}.", "Save the adapter again.") from error
    for name, tensor in read.items():
        if name not in state or state[name].shape != tensor.shape:
            raise InputError(
                f"The adapter's tensor {name} {tuple(tensor.shape)} does not fit the model.",
                f"It takes the linear maps {', '.join(linear_names(host.layers))} of its top layers.",
            )
        state[name] = tensor.float()
    return state


def write_adapter(folder: Path, host: AdapterHost, state: Mapping[str, Tensor]) -> None:
    """Write a folder that PEFT loads. In the clear: the weights hold what they still know.

    Raises:
        EnvironmentFailure: the disk is full.
    """
    import safetensors.torch

    with os_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        host.config.base_model_name_or_path = host.base.reference
        host.config.save_pretrained(str(folder))
    blob = safetensors.torch.save({name: state[name].contiguous() for name in sorted(state)})
    write_atomic(folder / "adapter_model.safetensors", blob)


def write_full(folder: Path, weights: FullWeights, state: Mapping[str, Tensor]) -> None:
    """Write a folder that transformers loads, in float32: rounding could take the change away again."""
    weights.load(state)
    with os_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        weights.model.save_pretrained(folder)
        weights.base.tokenizer.save_pretrained(folder)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise InputError(
            f"There is no adapter_config.json in {folder}.", "Give a folder written by PEFT."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON.", "Save the adapter again.") from error
    if not isinstance(found, dict) or "r" not in found or "lora_alpha" not in found:
        raise InputError(f"{path} does not describe a LoRA adapter.", "Save the adapter again.")
    return found
