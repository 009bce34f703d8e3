"""Every probe of a text that needs no gradient, no changed text and no second model, from one pass.

Guarantees: memorization, membership and extraction of a text come from one forward pass of it
(`counted` shows it), equal to what the single probes return; texts are read as a stream, a window
at a time, so memory does not grow with their number: of a text that is done, a few numbers stay.

It does not generate: what greedy decoding would say is known from the pass for the text itself, not
for other prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import Encoded
from llm_unlearn.eval.extraction import log_extraction_probability
from llm_unlearn.eval.membership import one_pass_scores
from llm_unlearn.eval.memorization import Memorization, memorization, near_verbatim
from llm_unlearn.eval.passes import Sampling, TokenScores, score_tokens

DRAWS = (Sampling(), Sampling(temperature=0.8, top_k=40))


@dataclass(frozen=True, slots=True)
class Probed:
    """What one pass says of one text.

    Attributes:
        memorization: loss, probability, exact memorization, extraction strength, longest run.
        near_verbatim: whether at most a tenth of the targets is guessed wrong, teacher-forced.
        membership: `loss`, `zlib`, `min_k`, `min_k_plus`; higher means member.
        draws: log-probability that one draw under each sampling scheme gives the whole answer.
    """

    memorization: Memorization
    near_verbatim: bool
    membership: dict[str, float]
    draws: tuple[float, ...]


def probe_ids(
    model: Any,
    items: Iterable[tuple[Sequence[int], Sequence[bool], str]],
    *,
    batch_size: int = 8,
    window: int = 256,
    share: float = 0.2,
    sampling: Sequence[Sampling] = DRAWS,
) -> Iterator[Probed]:
    """Probe texts given as token ids, loss mask and words (for zlib), in their order.

    Args:
        items: read as they are needed, `window` at a time; a window is ordered by length.
        batch_size: most texts a forward pass.
        share: of the tokens, for Min-K% and Min-K%++.
        sampling: ways of drawing, for (n, p)-discoverable extraction.

    Raises:
        InputError: as `passes.score_tokens`; a text without targets; a window below 1.
    """
    if window < 1:
        raise InputError(f"a window of {window} texts.", "Give 1 or more.")
    stream = iter(items)
    while part := list(islice(stream, window)):
        scores = score_tokens(
            model, [i for i, _, _ in part], [m for _, m, _ in part], batch_size, sampling=sampling
        )
        yield from _values(scores, [text for _, _, text in part], share, len(sampling))


def probe_texts(
    model: Any, items: Iterable[tuple[Encoded, str]], **options: Any
) -> Iterator[Probed]:
    """`probe_ids` on what `encoding.encode_pairs`, `encode_texts` or `encode_chats` return."""
    return probe_ids(model, ((e.ids, e.mask, text) for e, text in items), **options)


def _values(
    scores: Sequence[TokenScores], texts: Sequence[str], share: float, schemes: int
) -> Iterator[Probed]:
    members = one_pass_scores(scores, texts, share)
    known = memorization(scores)
    for i, score in enumerate(scores):
        yield Probed(
            known[i],
            near_verbatim(score),
            {name: float(values[i]) for name, values in members.items()},
            tuple(log_extraction_probability(score, s) for s in range(schemes)),
        )


@dataclass
class Passes:
    """How many texts went through the model (rows of batches), and in how many calls."""

    rows: int = 0
    calls: int = 0


@contextmanager
def counted(model: Any) -> Iterator[Passes]:
    """Count forward passes inside the block, by a hook on the model itself."""
    found = Passes()

    def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if ids is None:
            ids = kwargs.get("inputs_embeds", args[0] if args else None)
        found.calls += 1
        found.rows += len(ids) if ids is not None else 0

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()
