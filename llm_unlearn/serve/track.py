"""Answers that decode together: a lane, who is in its rows and what they say, their adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from llm_unlearn.answering import Answerer, Choice
from llm_unlearn.models.experts import Mixture
from llm_unlearn.models.lanes import Lane
from llm_unlearn.models.sampling import Drawn
from llm_unlearn.serve.job import Finish, Job, Piece

_LOOK: Final = 4  # tokens between two looks of the guard at the words so far


@dataclass
class Row:
    """An answer in a lane, and its last token."""

    job: Job
    choice: Choice
    last: int = 0

    def draw(self, values: Tensor, best: int, stops: Sequence[int], tokenizer: Any) -> None:
        """Draw the next token from logits (V,) and tell what it says.

        Args:
            best: the likeliest token.
            stops: tokens that end an answer.
        """
        job = self.job
        speech, sampler = job.speech, job.drawing
        if speech is None or sampler is None:
            return
        allowed = job.watch.constraint(tokenizer, speech.ids)
        if sampler.plain and (allowed is None or allowed(best)):
            drawn = Drawn(best)
        else:
            drawn = sampler.draw(values, allowed, end=stops[0] if stops else 0)
        self.last = drawn.token
        told: tuple[Drawn, ...] = ()
        new = ""
        finish: Finish | None = None
        if drawn.token in stops:
            finish = "stop"
        else:
            job.made += 1
            told = (drawn,) if sampler.logprobs is not None else ()
            new = speech.add(drawn.token)
            if speech.stopped:
                finish = "stop"
            elif job.made >= job.most:
                finish = "length"
        ends = job.watch.ends
        if ends is not None and (finish or job.made % _LOOK == 0) and ends(speech.whole):
            job.put(Piece("", (), "guard"))
        else:
            job.put(Piece(new + speech.close() if finish else new, told, finish))


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
