"""The settings of a workspace: what they are, what they may be, and how they are read.

Guarantees: a `Config` that exists is consistent; `dump_config` gives YAML that loads back to the
same `Config`; a bad file or override is told in one line with the file, the line, the key, the
value and what would be right. Importing this module loads no model library.

Not guaranteed: that the models named exist or fit the machine (`models` says so), or that a
package that a rule needs is installed (`separation`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llm_unlearn.config_guard import GuardConfig
from llm_unlearn.config_placement import PlacementConfig, Real, Settings
from llm_unlearn.config_serving import ServingConfig
from llm_unlearn.config_source import Written, apply_override, explain, read_yaml
from llm_unlearn.config_takedown import TakedownConfig
from llm_unlearn.retrieval.settings import StoreSettings
from llm_unlearn.separation import SeparationPolicy

FORMAT = 1
_HEADER = "# Settings of llm-unlearn. A key left out has its default."


class TrainingConfig(Settings):
    """How the corpus is divided and how the adapters learn. All of it is part of the recipe."""

    shards: int = Field(
        default=4,
        ge=1,
        le=1024,
        strict=True,
        description="Disjoint parts of the corpus, one adapter each; more of them make a deletion "
        "cheaper and each adapter know less.",
    )
    slices: int = Field(
        default=3,
        ge=1,
        le=256,
        strict=True,
        description="Ordered parts of a shard with a checkpoint after each; a deletion retrains "
        "only the slices from the touched one on.",
    )
    placement: PlacementConfig = Field(
        default=PlacementConfig(),
        description="By what a subject's shard and slice are chosen.",
    )
    slicing: Literal["cumulative", "sequential"] = Field(
        default="cumulative",
        description="cumulative: each slice trains on all slices up to it (SISA); sequential: on "
        "itself and a replay of earlier ones, which is cheaper and remembers them less.",
    )
    replay: Real = Field(
        default=0.25,
        ge=0,
        le=1,
        description="In sequential slicing, documents of earlier slices repeated with a slice, as "
        "a share of its own.",
    )
    orders: int = Field(
        default=1,
        ge=1,
        strict=True,
        description="Orders of a shard's slices that are trained side by side (S3T): after a deletion "
        "the one that it leaves mostly standing serves. Each costs a whole training.",
    )
    blocks: bool = Field(
        default=False,
        description="Each slice trains a block of layers of its own, from the top down (S3T): a "
        "deletion switches blocks off, and an order costs the room of one adapter.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        strict=True,
        description="With shard, slice and epoch it fixes every random choice.",
    )
    epochs: int = Field(
        default=12,
        ge=1,
        strict=True,
        description="How often a document is seen, counted in a shard without deletions.",
    )
    batch_size: int = Field(default=4, ge=1, strict=True, description="Documents in one step.")
    learning_rate: Real = Field(
        default=2e-3, gt=0, description="Peak of the schedule; 1e-4 to 5e-3 is usual for LoRA."
    )
    warmup: Real = Field(
        default=0.05, ge=0, lt=1, description="Part of a slice's steps in which the rate rises."
    )
    weight_decay: Real = Field(
        default=0.0, ge=0, description="AdamW's pull of the adapter towards zero."
    )
    max_tokens: int = Field(
        default=512,
        ge=8,
        strict=True,
        description="Longest piece of a document in one example; longer ones are cut into several.",
    )
    lora_rank: int = Field(
        default=16,
        ge=1,
        strict=True,
        description="Rank of the adapters: how much they hold.",
    )
    lora_alpha: int = Field(
        default=32,
        ge=1,
        strict=True,
        description="An adapter is scaled by alpha / rank.",
    )
    top_layers: int | None = Field(
        default=10,
        ge=1,
        strict=True,
        description="Adapt only so many of the last layers (faster); null adapts all of them.",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="What the model computes in: bfloat16 or float32."
    )
    threads: int = Field(
        default=2,
        ge=1,
        strict=True,
        description="CPU threads; bits can depend on it.",
    )
    clip: Real = Field(default=1.0, gt=0, description="Longest gradient (L2 norm) of one step.")

    @field_validator("placement")
    @classmethod
    def _has_room(cls, value: PlacementConfig, info: ValidationInfo) -> PlacementConfig:
        shards, slices = info.data.get("shards"), info.data.get("slices")
        if shards is None or slices is None:  # wrong by themselves, and told so
            return value
        value.check_room(shards, slices)
        return value

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        most = max(self.placement.slice_bands(self.slices))
        if self.orders > most:
            raise ValueError(
                f"{self.orders} orders that begin differently cannot be made of {self.slices} slices; "
                f"set training.orders to 1 to {most}"
            )
        if self.blocks and self.top_layers is not None and self.slices > self.top_layers:
            raise ValueError(
                f"{self.slices} slices do not fit into blocks of {self.top_layers} adapted layers; "
                "raise training.top_layers or give fewer slices"
            )
        return self

    @field_validator("learning_rate")
    @classmethod
    def _learns(cls, value: float) -> float:
        if value > 0.1:
            raise ValueError(
                "at a rate above 0.1 AdamW diverges and every adapter answers noise; "
                "use 1e-4 to 5e-3"
            )
        return value


class AnsweringConfig(Settings):
    """How a question finds the store, adapters, or neither. Similarities are cosines."""

    aggregation: Literal["route", "route-k", "ensemble", "ensemble-log", "merge"] = Field(
        default="route",
        description="Which adapters answer: route, the one that the nearest training documents "
        "vote for; route-k, the best few by their votes; ensemble, all, averaging probabilities; "
        "ensemble-log, all, averaging log-probabilities; merge, the mean of all as one adapter.",
    )
    route_shards: int = Field(
        default=2,
        ge=1,
        strict=True,
        description="With route-k, adapters that answer one question at most.",
    )
    adapter_memory: int = Field(
        default=1024,
        ge=0,
        strict=True,
        description="Megabytes of decrypted adapters kept between answers; those used longest ago "
        "go first.",
    )

    retrieve: int = Field(
        default=2, ge=1, strict=True, description="Chunks of the store given to the model at most."
    )
    store_threshold: Real = Field(
        default=0.35, ge=-1, le=1, description="A chunk less similar to the question is left out."
    )
    route_threshold: Real = Field(
        default=0.55,
        ge=-1,
        le=1,
        description="A question less similar to every training document reaches no adapter.",
    )
    route_neighbours: int = Field(
        default=5, ge=1, strict=True, description="Nearest training documents that choose a shard."
    )
    max_new_tokens: int = Field(
        default=64, ge=1, strict=True, description="Longest answer, in the model's tokens."
    )
    fallback: Literal["decline", "base"] = Field(
        default="decline",
        description="When neither knows: decline, or ask the base model without any context.",
    )
    decline_message: str = Field(
        default="I have no document that answers this.",
        description="What is said instead of an answer.",
    )

    @field_validator("decline_message")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError(
                "an empty message leaves the asker without a word when there is no answer; "
                "write one sentence"
            )
        return value


class Config(Settings):
    """All settings of a workspace."""

    version: int = Field(default=FORMAT, strict=True, description="Format of this file.")
    model: str = Field(
        default="packaged:smollm2-135m-instruct",
        min_length=1,
        description="Base model: packaged:NAME, a local directory, or a hub id.",
    )
    embedder: str = Field(
        default="packaged:all-minilm-l6-v2",
        min_length=1,
        description="Sentence-transformers model: packaged:NAME, a local directory, or a hub id.",
    )
    separation: SeparationPolicy = Field(
        default=SeparationPolicy(),
        description="Which document is trained on, retrievable, or refused.",
    )
    retrieval: StoreSettings = Field(
        default=StoreSettings(), description="How the store cuts and searches text."
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="How the corpus is divided and learned."
    )
    answering: AnsweringConfig = Field(
        default=AnsweringConfig(), description="How a question is answered."
    )
    takedown: TakedownConfig = Field(
        default=TakedownConfig(), description="What counts as a copy of a demanded text."
    )
    serving: ServingConfig = Field(
        default=ServingConfig(), description="What the server takes on at once."
    )
    guard: GuardConfig = Field(
        default=GuardConfig(), description="What the server's answers may repeat and be told."
    )

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(
                f"this package reads format {FORMAT} and would misread another; "
                f"install the llm-unlearn that wrote the file, or write version: {FORMAT} and "
                "check every key"
            )
        return value


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The settings in a YAML file, with defaults for what it leaves out and overrides on top.

    An override is `a.b=value`, the value in YAML. With no path, the defaults and the overrides.

    Raises:
        InputError: the file cannot be read, or a key or value is wrong: one line for the first in
            the file, saying how many more there are.
    """
    written = Written() if path is None else read_yaml(path)
    for rank, override in enumerate(overrides):
        apply_override(written, override, rank)
    try:
        return Config.model_validate(written.values)
    except ValidationError as error:
        raise explain(error, written, Config) from error


def dump_config(config: Config) -> str:
    """The settings as commented YAML that `load_config` reads back to the same `Config`."""
    return "\n".join([_HEADER, *_dump(config, "")]) + "\n"


def _dump(settings: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel) and not indent:
            lines.append("")
        for line in textwrap.wrap(info.description or "", 96 - len(indent)):
            lines.append(f"{indent}# {line}")
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_dump(value, indent + "  ")]
        else:
            lines += [indent + line for line in _plain(name, value).split("\n")]
    return lines


class _Dumper(yaml.SafeDumper):
    """Escapes every line break: PyYAML writes some (U+0085) raw, and reads them as others."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if len(data.splitlines()) > 1 or data[-1:].isspace() else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def _plain(name: str, value: Any) -> str:
    several = isinstance(value, tuple)
    if several:
        value = [
            item.model_dump(mode="json", exclude_defaults=True)
            if isinstance(item, BaseModel)
            else item
            for item in value
        ]
    text = yaml.dump(
        {name: value},
        Dumper=_Dumper,
        allow_unicode=True,
        default_flow_style=None if several else False,
        sort_keys=False,
        width=92,
    )
    return str(text).removesuffix("\n")
