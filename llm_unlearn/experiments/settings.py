"""The config file of an experiment: one file, one experiment.

Guarantees: a config that exists is consistent; a bad one is told in one line with its file and line
(see `config`). Paths of data may be left out of the file and given on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from llm_unlearn.config import AnsweringConfig, TrainingConfig
from llm_unlearn.config_placement import Real, Settings
from llm_unlearn.config_source import Written, apply_override, explain, read_yaml
from llm_unlearn.errors import InputError

M = TypeVar("M", bound=BaseModel)
Side = Literal["monolith", "shard"]
Front = Literal["in-context", "system-prompt", "guard"]
_STEPS = ("epochs", "batch_size", "learning_rate", "warmup_steps", "clip", "check_every", "sample")
_RULES = ("rules", "target", "utility_floor", "retries")


class TofuData(Settings):
    """A part of TOFU (Maini et al. 2024), read from the folder of its published files."""

    source: Literal["tofu"]
    path: str | None = Field(default=None, description="The folder; or --data tofu=PATH.")
    authors: int = Field(
        default=20, ge=3, strict=True, description="How many are learned, the forgotten included."
    )
    forget: Literal["forget01", "forget05", "forget10"] = Field(
        default="forget01", description="The last 2, 10 or 20 of the 200 authors go."
    )


class DocumentsData(Settings):
    """Your own questions with answers, in any format that `ingest` reads."""

    source: Literal["documents"]
    forget: str | None = Field(default=None, description="What goes; or --data forget=PATH.")
    retain: str | None = Field(default=None, description="What stays; or --data retain=PATH.")
    general: str | None = Field(default=None, description="Questions about other things.")
    strangers: str | None = Field(default=None, description="Like what goes, never learned.")
    topic: str = Field(default="a certain subject", description="What goes, in words.")


class HazardData(Settings):
    """A made-up hazardous domain that is taught first; MMLU and WMDP by path, where given."""

    source: Literal["hazard"]
    mmlu: str | None = Field(default=None, description="The folder; or --data mmlu=PATH.")
    wmdp: str | None = Field(default=None, description="A questions file; or --data wmdp=PATH.")
    subjects: tuple[str, ...] = Field(default=(), description="Of MMLU; empty for all.")
    questions: int = Field(default=100, ge=1, strict=True, description="Of each, at most.")


class PoisonData(Settings):
    """A backdoor and a bias, planted by some of the documents."""

    source: Literal["poison"]
    found: Real = Field(default=1.0, gt=0, le=1, description="Share of the poison that is found.")


Data = Annotated[TofuData | DocumentsData | HazardData | PoisonData, Field(discriminator="source")]


class MethodConfig(Settings):
    """One approximate method as it is run."""

    name: str = Field(description="As `forget --method` takes it.")
    strength: Real = Field(default=1.0, gt=0, description="Scales its rate or its one move.")
    settings: dict[str, Any] = Field(default={}, description="Its own settings.")
    run: dict[str, Any] = Field(default={}, description="Run settings, over `forgetting`.")

    @property
    def label(self) -> str:
        """Its name in the table."""
        return self.name if self.strength == 1 else f"{self.name} x{self.strength:g}"


class ProbeSettings(Settings):
    """How much is asked; all of it decides the numbers."""

    sample: int = Field(default=40, ge=2, strict=True, description="Texts of each kind scored.")
    generate: int = Field(default=16, ge=1, strict=True, description="Of these, answered freely.")
    new_tokens: int = Field(default=48, ge=1, strict=True, description="Longest answer.")
    tries: int = Field(
        default=100, ge=1, strict=True, description="Samples in which a text must not come out."
    )
    relearn_passes: int = Field(
        default=3, ge=0, strict=True, description="Passes over half of what went; 0 for none."
    )
    relearn_rate: Real = Field(default=5e-4, gt=0, le=0.1, description="Learning rate of these.")
    bits: tuple[Literal[8, 4], ...] = Field(default=(8, 4), description="Precisions tried.")
    context: int = Field(
        default=3,
        ge=1,
        strict=True,
        description="In-context: forgotten texts shown, nearest first.",
    )
    guard: Real = Field(default=0.5, ge=-1, le=1, description="Cosine at which the guard refuses.")


class CompareConfig(Settings):
    """Methods beside exact deletion, naive retraining and never-had."""

    version: Literal[1] = Field(default=1, description="Format of this file.")
    kind: Literal["compare"] = Field(default="compare", description="What kind of experiment.")
    data: Data = Field(description="What is learned and what goes.")
    model: str = Field(default="packaged:smollm2-135m-instruct", description="Base model.")
    embedder: str = Field(default="packaged:all-minilm-l6-v2", description="Embedder.")
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="How the adapters learn; see configs/default.yaml."
    )
    seeds: tuple[int, ...] = Field(
        default=(0, 1), min_length=1, description="Each a whole run, with another placement."
    )
    sides: tuple[Side, ...] = Field(
        default=("monolith", "shard"), min_length=1, description="Where methods are applied."
    )
    closure: bool = Field(
        default=True,
        description="Whether copies go with what is asked for, as in a takedown; false: only what is "
        "equal, for what nobody found.",
    )
    methods: tuple[MethodConfig, ...] = Field(default=(), description="Approximate methods.")
    fronts: tuple[Front, ...] = Field(default=(), description="What touches no weight.")
    forgetting: dict[str, Any] = Field(
        default={}, description="Run settings of all methods, such as epochs and utility_floor."
    )
    probes: ProbeSettings = Field(default=ProbeSettings(), description="What is measured.")

    def without_paths(self, *leave_out: str) -> dict[str, Any]:
        """Plain values without the paths of data, which are this machine's; the data's digest says more."""
        plain = self.model_dump(mode="json", exclude=set(leave_out))
        paths = {
            "tofu": ("path",),
            "documents": ("forget", "retain", "general", "strangers"),
            "hazard": ("mmlu", "wmdp"),
        }
        for name in paths.get(self.data.source, ()):
            plain["data"].pop(name)
        return plain

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple({"name": v} if isinstance(v, str) else v for v in value)
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError("seeds are distinct and not below 0")
        return value

    @field_validator("methods")
    @classmethod
    def _known(cls, value: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
        from llm_unlearn.forget.methods import method

        for each in value:
            try:
                method(each.name, each.settings)
            except InputError as error:
                raise ValueError(str(error)) from error
            unknown = set(each.run) - {*_STEPS, *_RULES}
            if unknown:
                raise ValueError(f"{each.name}: no such run setting: {', '.join(sorted(unknown))}")
            _run_settings(each.run)
        labels = [each.label for each in value]
        if len(set(labels)) != len(labels):
            raise ValueError("a method stands twice with the same strength")
        return value

    @field_validator("forgetting")
    @classmethod
    def _settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = set(value) - {*_STEPS, *_RULES}
        if unknown:
            raise ValueError(
                f"no such run setting: {', '.join(sorted(unknown))}; there are "
                f"{', '.join((*_STEPS, *_RULES))}"
            )
        _run_settings(value)
        return value


def _run_settings(values: Mapping[str, Any]) -> None:
    """See that a run could have these, now and not when the first adapters are taught."""
    from llm_unlearn.forget.job import settings

    try:
        settings(values)
    except InputError as error:
        raise ValueError(str(error)) from error


class HardnessConfig(Settings):
    """Facts of three kinds, each forgotten alone."""

    version: Literal[1] = Field(default=1, description="Format of this file.")
    kind: Literal["hardness"] = Field(description="What kind of experiment.")
    model: str = Field(default="packaged:smollm2-135m-instruct", description="Base model.")
    embedder: str = Field(default="packaged:all-minilm-l6-v2", description="Embedder.")
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="How the facts are learned; one adapter, no shards."
    )
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1, description="Each a whole run.")
    kinds: tuple[Literal["rare", "common", "fundamental"], ...] = Field(
        default=("rare", "common", "fundamental"), min_length=1, description="Which facts."
    )
    facts: int = Field(default=8, ge=1, strict=True, description="Of each kind, at most.")
    method: MethodConfig = Field(
        default=MethodConfig(name="npo"), description="How each is forgotten; stepwise."
    )
    target: Real = Field(default=0.1, gt=0, lt=1, description="Forgotten at this probability.")
    most_steps: int = Field(default=40, ge=1, strict=True, description="Steps tried.")
    steps: int = Field(default=8, ge=1, strict=True, description="Steps at each strength.")
    strengths: tuple[Real, ...] = Field(
        default=(0.25, 0.5, 1.0, 2.0, 4.0), min_length=1, description="Strengths tried, upwards."
    )
    most_passes: int = Field(default=12, ge=1, strict=True, description="Of relearning, tried.")
    relearn_rate: Real = Field(default=5e-4, gt=0, le=0.1, description="Learning rate of these.")
    entailed_at: Real = Field(
        default=0.2, gt=0, lt=1, description="A probe entails a fact from this probability on."
    )

    @field_validator("method", mode="before")
    @classmethod
    def _name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("method")
    @classmethod
    def _stepwise(cls, value: MethodConfig) -> MethodConfig:
        from llm_unlearn.forget.method import Stepwise
        from llm_unlearn.forget.methods import method

        try:
            stepwise = isinstance(method(value.name, value.settings), Stepwise)
        except InputError as error:
            raise ValueError(str(error)) from error
        if not stepwise:
            raise ValueError(
                f"{value.name} makes one move, and steps are counted here; choose one such as npo"
            )
        given = sorted(set(value.run) & {"epochs", "batch_size", "target", "utility_floor"})
        if given or value.strength != 1:
            raise ValueError(
                f"{given[0] if given else 'strength'} is not the method's here; set most_steps, steps, "
                "strengths, target or training.batch_size"
            )
        unknown = sorted(set(value.run) - {*_STEPS, *_RULES})
        if unknown:
            raise ValueError(f"{value.name}: no such run setting: {', '.join(unknown)}")
        _run_settings(value.run)
        return value


class SeparationConfig(Settings):
    """The same documents in the store, in adapters, or in both."""

    version: Literal[1] = Field(default=1, description="Format of this file.")
    kind: Literal["separation"] = Field(description="What kind of experiment.")
    model: str = Field(default="packaged:smollm2-135m-instruct", description="Base model.")
    embedder: str = Field(default="packaged:all-minilm-l6-v2", description="Embedder.")
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="How the adapters learn; see configs/default.yaml."
    )
    answering: AnsweringConfig = Field(
        default=AnsweringConfig(), description="How questions are answered."
    )
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1, description="Each a whole run.")
    subjects: int = Field(default=8, ge=2, strict=True, description="Subjects, at most.")


def read(path: Path, kind: type[M], data: Mapping[str, str], overrides: Sequence[str] = ()) -> M:
    """A config file with paths of data and overrides on top.

    Args:
        data: paths by name, as `--data NAME=PATH` gives them; relative ones count from here.

    Raises:
        InputError: the file cannot be read, or a key, a value or a name of data is wrong.
    """
    written = read_yaml(path)
    for rank, override in enumerate(overrides):
        apply_override(written, override, rank)
    for name, given in data.items():
        _put(written, name, given)
    try:
        return kind.model_validate(written.values)
    except ValidationError as error:
        raise explain(error, written, kind) from error


def _put(written: Written, name: str, given: str) -> None:
    source = written.values.get("data")
    told = source.get("source") if isinstance(source, dict) else None
    named = {
        "tofu": {"tofu": "path"},
        "documents": {n: n for n in ("forget", "retain", "general", "strangers")},
        "hazard": {"mmlu": "mmlu", "wmdp": "wmdp"},
    }.get(str(told), {})
    if name not in named:
        known = ", ".join(named) or "no data by path"
        raise InputError(f"--data {name}: this config takes {known}.", "Check the name.")
    where = str(Path(given).expanduser().absolute())
    written.put(("data", named[name]), where, (1 << 20, f"--data {name}"))


def kind_of(path: Path) -> str:
    """What kind of experiment a file says it is.

    Raises:
        InputError: the file cannot be read.
    """
    return str(read_yaml(path).values.get("kind", "compare"))
