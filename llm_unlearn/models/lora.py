"""One base model in memory, any number of LoRA adapters over it, one at a time in place.

Guarantees: the adapter's weights are float32 whatever the base; a fresh adapter depends on its seed
only; adapters written out load in PEFT unchanged (Hu et al. 2021, arXiv 2106.09685). Which adapter is
in place is state of the host: threads take turns through `using`.
"""

from __future__ import annotations

import hashlib
import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.causal import CausalModel
from llm_unlearn.models.layers import decoder, linear_names, uses_transposed_weights

AdapterState = dict[str, Tensor]


@dataclass(frozen=True)
class LoraShape:
    """Which layers carry an adapter and how wide it is; `top_layers=None` means all of them."""

    rank: int = 16
    alpha: int = 32
    top_layers: int | None = None


@dataclass(frozen=True)
class Block:
    """Some neighbouring layers of an adapter: the names of their tensors, and the lowest of the layers."""

    names: tuple[str, ...]
    first: int


class AdapterHost:
    """A base model with LoRA maps in its top layers.

    Args:
        base: the base model; its linear layers are wrapped in place.
        shape: rank, scale and depth of the adapter.

    Raises:
        InputError: more adapted layers asked for than the model has.
    """

    def __init__(self, base: CausalModel, shape: LoraShape) -> None:
        found = decoder(base.model)
        count = len(found.layers)
        top = count if shape.top_layers is None else shape.top_layers
        if not 1 <= top <= count:
            raise InputError(
                f"training.top_layers is {top}, but {base.reference} has {count} layers.",
                f"Choose 1 to {count}, or null for all.",
            )
        self.base = base
        self.shape = shape
        self.lock = threading.RLock()
        self.first_layer = count - top
        self.layers = found.layers
        transposed = uses_transposed_weights(found.layers)
        self.config = LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            target_modules=linear_names(found.layers),
            layers_to_transform=list(range(self.first_layer, count)),
            layers_pattern=found.name,
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=transposed,
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # peft still reads a name that transformers 5 has renamed; nothing a user can act on
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            self.model = get_peft_model(base.model, self.config)
        self.model.eval()
        self.adapted: dict[str, LoraLayer] = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        self._parameters: dict[str, nn.Parameter] = {
            name.replace(".default", ""): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        for parameter in self._parameters.values():
            parameter.data = parameter.data.float()
        numbers = {id(p): n for n, layer in enumerate(found.layers) for p in layer.parameters()}
        self._layer_of = {name: numbers[id(p)] for name, p in self._parameters.items()}
        saved = set(get_peft_model_state_dict(self.model))
        if saved != set(self._parameters):
            raise AssertionError("the adapter's own names differ from those PEFT saves")

    @property
    def names(self) -> list[str]:
        """Names of the adapter's tensors, sorted, as PEFT saves them."""
        return sorted(self._parameters)

    def parameters(self, names: Sequence[str] | None = None) -> list[nn.Parameter]:
        """The trainable tensors, by default in the order of `names`."""
        return [self._parameters[name] for name in (self.names if names is None else names)]

    def block(self, place: int, blocks: int) -> Block:
        """One of `blocks` blocks into which the adapted layers are divided, 0 being the topmost.

        Of n adapted layers, counted from the top, block p has those from floor(p n / blocks) to
        floor((p + 1) n / blocks): of 10 in 3 blocks the upper 3, the next 3, the lower 4.

        Raises:
            InputError: more blocks than adapted layers.
        """
        count = len(self.layers) - self.first_layer
        if blocks > count:
            raise InputError(
                f"{blocks} slices do not fit into blocks of {count} adapted layers.",
                "Raise training.top_layers, or give fewer slices.",
            )
        last = len(self.layers) - place * count // blocks
        first = len(self.layers) - (place + 1) * count // blocks
        return Block(tuple(n for n in self.names if first <= self._layer_of[n] < last), first)

    @contextmanager
    def training(self, names: Sequence[str]) -> Iterator[None]:
        """Let only these tensors have gradients."""
        kept = set(names)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in kept)
        try:
            yield
        finally:
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)

    def fresh(self, seed: bytes) -> AdapterState:
        """A new adapter: A uniform as in PEFT (Kaiming, a = sqrt 5), B zero; a function of the seed."""
        state: AdapterState = {}
        for name in self.names:
            shape = self._parameters[name].shape
            tensor = torch.zeros(shape, dtype=torch.float32)
            if ".lora_A." in name:
                generator = torch.Generator().manual_seed(
                    int.from_bytes(hashlib.sha256(seed + name.encode()).digest()[:7], "big")
                )
                bound = math.sqrt(6.0 / (6.0 * shape[1]))
                tensor.uniform_(-bound, bound, generator=generator)
            state[name] = tensor
        return state

    @contextmanager
    def using(self, state: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Hold the model with an adapter in place, or with None the base model alone.

        One thread at a time: which adapter is in place is state that all of them share.
        """
        with self.lock:
            if state is None:
                with self._bare():
                    yield
            else:
                self.load(state)
                yield

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The adapted maps as they are in the base model.

        PEFT's own switch counts the parameters of the whole model each time: too dear for every token.
        """
        layers = list(self.adapted.values())
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            vars(layer)["forward"] = layer.get_base_layer()  # hides the method
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                if forward is None:
                    del vars(layer)["forward"]
                else:
                    vars(layer)["forward"] = forward

    @contextmanager
    def merged(self, state: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Hold the base model with the adapter's product added to its own weights, in its own precision.

        What a user has who merges before shipping or quantizing; the weights are put back bit for bit.
        """
        if state is None:
            with self.using(None):
                yield
            return
        with self.using(state):
            saved = []
            try:
                with torch.no_grad():
                    for layer in self.adapted.values():
                        weight = layer.get_base_layer().weight
                        saved.append((weight, weight.detach().clone()))
                        weight.copy_(weight.float() + layer.get_delta_weight("default"))
                with self._bare():
                    yield
            finally:
                with torch.no_grad():
                    for weight, value in saved:
                        weight.copy_(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put an adapter in place, copying its values; hold `lock` as long as it must stay."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[name])

    def state(self) -> AdapterState:
        """A copy of the adapter in place, float32 on the CPU."""
        return {name: self._parameters[name].detach().to("cpu").clone() for name in self.names}
