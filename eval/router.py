"""What the router tells of what was removed: which shard would answer a question about it.

Guarantees: takes the routing function, not its settings: for each question, which shards it would
reach and with what cosine. A router that equals never-had's cannot know where the removed text was;
what it still tells is where the nearest strangers are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_unlearn.errors import InputError
from llm_unlearn.eval.membership import Attack, attack
from llm_unlearn.eval.summary import Estimate, wilson

Routing = Callable[[str], tuple[float, int | None]]
"""The nearest training document's cosine (-1 for none), and the shard that would answer, if any."""


@dataclass(frozen=True, slots=True)
class Leak:
    """What questions about removed subjects reach.

    Attributes:
        answered: share of them that some adapter answers.
        controls_answered: the same of questions about subjects that never came.
        home: share of them that go to the shard where the subject had been; chance is about one
            over the number of shards, and never-had's own share is the yardstick.
        told_apart: AUC of the cosine, removed against never-came.
    """

    answered: Estimate
    controls_answered: Estimate
    home: Estimate
    told_apart: Attack


def router_leak(
    routing: Routing,
    removed: Sequence[tuple[str, int]],
    controls: Sequence[str],
    *,
    seed: int = 0,
) -> Leak:
    """Ask about removed subjects, each with the shard it had been in, and about controls.

    Removed from shards 0 and 1: cosine 0.9 to shard 0, 0.4 to none; controls 0.5 and 0.3, to none:
    answered 1/2, home 1/2, controls 0, AUC 3/4 (0.9 above both, 0.4 above one).

    Raises:
        InputError: no questions of one kind.
    """
    if not removed or not controls:
        raise InputError(
            f"{len(removed)} questions and {len(controls)} controls.", "Give some of each."
        )
    gone = [(routing(question), home) for question, home in removed]
    other = [routing(question) for question in controls]
    return Leak(
        answered=wilson(sum(shard is not None for (_, shard), _ in gone), len(gone)),
        controls_answered=wilson(sum(shard is not None for _, shard in other), len(other)),
        home=wilson(sum(shard == home for (_, shard), home in gone), len(gone)),
        told_apart=attack([cosine for (cosine, _), _ in gone], [c for c, _ in other], seed=seed),
    )
