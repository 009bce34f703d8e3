"""What a forgetting method is: a checked config with a loss, or with a single move of the weights.

Guarantees: a method that exists is consistent; it is a frozen value, so its JSON is its recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from llm_unlearn.forget.tensors import Predicted

if TYPE_CHECKING:
    from llm_unlearn.forget.passes import Item, Passes

Asks = Literal["logps", "logits", "hidden"]


@dataclass(frozen=True)
class Groups:
    """One step's sequences: to forget, to keep, and other answers to the forget questions.

    `preferred` has as many sequences as `gone`, in the same order. `memory` holds the few numbers
    that a method carries from step to step, by name.
    """

    gone: Predicted | None
    retain: Predicted | None = None
    preferred: Predicted | None = None
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def forget(self) -> Predicted:
        """The sequences to forget."""
        if self.gone is None:
            raise AssertionError("the method uses text to forget that it did not ask for")
        return self.gone

    @property
    def kept(self) -> Predicted:
        """The sequences to keep."""
        if self.retain is None:
            raise AssertionError("the method uses retained text that it did not ask for")
        return self.retain

    @property
    def chosen(self) -> Predicted:
        """The preferred answers."""
        if self.preferred is None:
            raise AssertionError("the method uses other answers that it did not ask for")
        return self.preferred


class Method(BaseModel):
    """One method's settings. Subclasses name themselves, their paper and what a step needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    citation: ClassVar[str]


class Stepwise(Method):
    """A method that descends a loss step by step."""

    uses_forget: ClassVar[bool] = True
    uses_retain: ClassVar[bool] = True
    forget_reference: ClassVar[frozenset[Asks]] = frozenset()
    retain_reference: ClassVar[frozenset[Asks]] = frozenset()
    answers: ClassVar[Literal["none", "refusal", "alternative"]] = "none"

    def loss(self, groups: Groups) -> Tensor:
        """The scalar to descend."""
        raise NotImplementedError

    def needs_retain(self) -> bool:
        """Whether a step with these settings reads retained text."""
        return self.uses_retain

    def stops_at(self, first: int, count: int) -> int | None:
        """The layer whose output the loss is about, or None for the logits.

        Args:
            first: the first layer whose weights train, of `count` layers.
        """
        return None

    def prepare(self, width: int, seed: bytes) -> Stepwise:
        """The method with what depends on the model's width filled in."""
        return self


@dataclass(frozen=True)
class Move:
    """A way from the starting weights: `at(scale)` gives the state so far along it."""

    at: Callable[[float], Mapping[str, Tensor]]
    report: Mapping[str, float]


class Direct(Method):
    """A method that computes one move of the weights; how far to go is the strength's."""

    def move(
        self,
        passes: Passes,
        forget: list[Item],
        retain: list[Item],
        seed: bytes,
        told: Callable[[int, int], None],
    ) -> Move:
        """Compute the move from the weights in place; leaves them as they are.

        `passes` is open.

        Args:
            told: called with the number of parts done and their total.
        """
        raise NotImplementedError
