"""The recipe: all that decides the bits of an adapter besides the documents.

Guarantees: two recipes with one digest train to the same bits from the same documents; anything known
to change bits (versions, settings, thread count, kind of processor) changes the digest. The processor is
fingerprinted by what it computes, not by its name, so that a rebuild on another machine that
rounds differently is told apart from tampering.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from functools import cache

import torch
from pydantic import BaseModel, ConfigDict

from llm_unlearn.config import TrainingConfig

_PACKAGES = ("llm-unlearn", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")


class Recipe(BaseModel):
    """What a shard's bits depend on, as plain values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str  # SHA-256 of its files
    embedder: str
    training: TrainingConfig
    placement: str  # commitment to the placement key, not the key
    versions: dict[str, str]
    processor: str

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical JSON of all fields."""
        plain = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).digest()

    def differences(self, other: Recipe) -> list[str]:
        """Dotted names of the fields in which another recipe differs, with both values."""
        mine, theirs = _flat(self.model_dump()), _flat(other.model_dump())
        return [
            f"{key}: {mine.get(key)} here, {theirs.get(key)} there"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]


def current_recipe(base: str, embedder: str, training: TrainingConfig, placement: bytes) -> Recipe:
    """The recipe of this process, after `pin_threads`.

    Args:
        base: digest of the base model's files.
        embedder: digest of the embedder's files (the router depends on it).
        placement: the placement key; only a commitment to it enters the recipe.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions["python"] = ".".join(platform.python_version_tuple()[:2])
    return Recipe(
        base_model=base,
        embedder=embedder,
        training=training,
        placement=hashlib.sha256(b"placement commitment\0" + placement).hexdigest(),
        versions=versions,
        processor=processor_fingerprint(training.threads),
    )


def pin_threads(count: int) -> None:
    """Use as many threads as the recipe says, and only deterministic kernels."""
    torch.set_num_threads(count)
    torch.use_deterministic_algorithms(True)
    # else every tensor is first filled with NaN, a tenth of the time; nothing here reads unwritten memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@cache
def processor_fingerprint(threads: int) -> str:
    """SHA-256 of what a few seeded operations of training compute here (16 hex digits).

    Args:
        threads: the number pinned; a fingerprint is taken once for each.
    """
    pin_threads(threads)
    total = hashlib.sha256()
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(96, 576, generator=generator).to(dtype)
        b = torch.randn(576, 192, generator=generator).to(dtype)
        product = a @ b
        heads = product.view(1, 96, 3, 64).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(
            heads, heads, heads, is_causal=True
        )
        for result in (product, torch.softmax(product, -1), torch.exp(-product.abs()), attended):
            total.update(result.float().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat
