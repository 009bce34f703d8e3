"""Answers that decode together: a lane, who is in its rows, and their adapters side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_unlearn.answering import Answerer, Choice
from llm_unlearn.models.experts import Mixture
from llm_unlearn.models.lanes import Lane
from llm_unlearn.serve.job import Job


@dataclass
class Row:
    """An answer in a lane, and its last token."""

    job: Job
    choice: Choice
    last: int = 0


@dataclass
class Track:
    """One lane; the mixture of its rows is kept while they stay the same."""

    lane: Lane
    answerer: Answerer
    rows: list[Row] = field(default_factory=list)
    _mixture: Mixture | None = None

    def keep(self, places: Sequence[int]) -> None:
        """Let all other rows go."""
        if len(places) < len(self.rows):
            self.lane.keep(places)
            self.rows = [self.rows[place] for place in places]
            self._mixture = None

    def add(self, rows: Sequence[Row]) -> None:
        """Rows that have joined the lane."""
        self.rows += rows
        self._mixture = None

    def mixture(self) -> Mixture | None:
        """The adapters of all rows; None for the base model."""
        if not self.rows[0].choice.experts:
            return None
        if self._mixture is None:
            self._mixture = self.answerer.mixture([row.choice for row in self.rows])
        return self._mixture
