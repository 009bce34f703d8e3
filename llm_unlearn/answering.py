"""From a question to an answer: from the store, from adapters, or none.

Guarantees: a caller without groups gets no answer; the store is searched only over what the groups may
see; an adapter answers only callers in the group that its shard belongs to, or in the default group
where it learned documents without access groups; every adapter that answers is a clean checkpoint, and
routing looks only at documents that it has been trained on. A question that names a removed subject
reaches no adapter, and of the store only passages that hold the name themselves: no stranger's
adapter or passage answers in its place. If anything in the workspace changed between choosing the
sources and the last word, the answer is thrown away and made again, so that nothing accepted for
removal is in any answer returned after it. Threads may ask at once; the model takes them in turn.

A question that nothing live is near to gets the same fixed words whatever the reason, on the same
path: every question is embedded, searched for, and looked up among removed names, and so is every
passage found for it.

It does not promise that a small model reads its context well, nor that it never invents; nor to know
a removed subject that a question only describes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llm_unlearn.config import AnsweringConfig
from llm_unlearn.errors import AccessDenied, Damaged
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.models.experts import Mixture
from llm_unlearn.models.lora import AdapterHost
from llm_unlearn.models.mixed import generate_mixed
from llm_unlearn.opened import Opened
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.embedding import Floats, encode
from llm_unlearn.retrieval.store import Hit, Store
from llm_unlearn.routing import Standing, nearest, permitted, shares, standing
from llm_unlearn.sisa.aggregate import mean_log_probability, mean_probability
from llm_unlearn.sisa.build import ShardState
from llm_unlearn.sisa.serving import ServingAdapters
from llm_unlearn.takedown.tombstones import Tombstones

Origin = Literal["store", "adapter", "base", "declined"]

# Of eight wordings tried on SmolLM2-135M this one read the passages best (docs/LOG.md): a small
# model copies better than it answers, and forgets a question that stands only at the end.
_CONTEXT = (
    "{question}\n\nThe answer is somewhere in this text:\n{passages}\n\n"
    "Copy the sentence of the text that answers the question: {question}"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets.

    `score` is the cosine of the nearest passage or training document; `shards` the adapters that
    answered, the one with the largest share first; `citations` the passages given to the model,
    best first.
    """

    text: str
    origin: Origin
    citations: tuple[Hit, ...] = ()
    shards: tuple[int, ...] = ()
    score: float = 0.0

    @property
    def shard(self) -> int | None:
        """The adapter that answered, if it was one alone."""
        return self.shards[0] if len(self.shards) == 1 else None


@dataclass(frozen=True, slots=True)
class Choice:
    """Where an answer is to come from: passages, or adapters (shard, inputs, share), or neither."""

    origin: Origin
    hits: tuple[Hit, ...] = ()
    experts: tuple[tuple[int, bytes, float], ...] = ()
    score: float = 0.0


@dataclass
class Answerer:
    """Answers questions over one open workspace.

    Args:
        states: the shards as they stand now, recomputed when the workspace changed.
        required_groups: shards that answer one access group only (`Layout.required_groups`).
        named: marks of the removed subjects that a text names (`Tombstones.named`).
    """

    config: AnsweringConfig
    default_group: str
    database: Database
    store: Store
    router: Store
    serving: ServingAdapters
    host: Callable[[], AdapterHost]
    states: Callable[[], list[ShardState]]
    required_groups: Callable[[], Mapping[int, str]]
    named: Callable[[str], frozenset[bytes]]
    # at most one, with the change that it was derived at; answerers over one workspace share it
    _standing: list[tuple[int, Standing]] = field(default_factory=list, repr=False)

    def ask(self, questions: Sequence[str], groups: Collection[str]) -> list[Answer]:
        """Answer each question on its own; all that adapters answer share batches.

        Raises:
            AccessDenied: no group given.
            Damaged: a checkpoint or record that the answer needs is not what was written.
        """
        if not groups:
            raise AccessDenied(
                "No group given, so nothing may be seen.",
                f"Say who is asking, for example --group {self.default_group}.",
            )
        vectors = [encode(self.store.embedder, [question])[0] for question in questions]
        while True:
            change = self.database.change()
            choices = self.choose(questions, vectors, groups)
            failure: Damaged | None = None
            answers: list[Answer] = []
            try:
                answers = self.answer(questions, choices)
            except Damaged as error:  # perhaps only because a takedown destroyed it meanwhile
                failure = error
            # nothing was committed between the first look and the last word
            if self.database.change() == change:
                if failure is not None:
                    raise failure
                return answers

    def stand(self) -> Standing:
        """The shards as they serve now; adapters that no longer serve are forgotten here."""
        change = self.database.change()
        held = next(iter(self._standing), None)
        if held is None or held[0] != change:
            held = (change, standing(self.states()))
            self._standing[:] = [held]
        now = held[1]
        # each time: another thread may have loaded one that had just been rolled back
        self.serving.keep(now.serving.items())
        return now

    def choose(
        self, questions: Sequence[str], vectors: Sequence[Floats], groups: Collection[str]
    ) -> list[Choice]:
        """Where each answer is to come from, given the questions' unit vectors."""
        now = self.stand()
        shards = permitted(now, self.required_groups(), groups, self.default_group)
        return [
            self._choose_one(question, vector, groups, now, shards)
            for question, vector in zip(questions, vectors, strict=True)
        ]

    def _choose_one(
        self,
        question: str,
        vector: Floats,
        groups: Collection[str],
        now: Standing,
        shards: frozenset[int],
    ) -> Choice:
        hits = self.store.search_vector(vector, groups=groups, k=self.config.retrieve)
        near = nearest(self.router, vector, now, shards, self.config.route_neighbours)
        share = shares(near, shards, self.config)
        removed = self.named(question)
        named = [self.named(hit.text) for hit in hits]  # asked always: time must not tell
        if removed:
            share = {}
            hits = [hit for hit, found in zip(hits, named, strict=True) if removed & found]
        found = tuple(hit for hit in hits if hit.score >= self.config.store_threshold)
        if found and (not share or found[0].score >= near[0][0]):
            return Choice("store", hits=found, score=found[0].score)
        if share:
            order = sorted(share, key=lambda shard: (-share[shard], shard))
            experts = tuple((s, now.serving[s], share[s]) for s in order)
            return Choice("adapter", experts=experts, score=near[0][0])
        return Choice("base" if self.config.fallback == "base" else "declined")

    def answer(self, questions: Sequence[str], choices: Sequence[Choice]) -> list[Answer]:
        """Carry out the choices.

        Raises:
            Damaged: see `ask`.
        """
        texts = {
            i: self.config.decline_message
            for i, choice in enumerate(choices)
            if choice.origin == "declined"
        }
        learned = [i for i, choice in enumerate(choices) if choice.experts]
        if learned:
            host = self.host()
            mixture = self.mixture([choices[i] for i in learned])
            tokenizer = host.base.tokenizer
            new = generate_mixed(
                host,
                mixture.stacked,
                [prompt_ids(tokenizer, questions[i]) for i in learned],
                mixture.slots,
                mixture.weights,
                mixture.combine,
                max_new_tokens=self.config.max_new_tokens,
            )
            texts |= self._words(learned, new)
        plain = [i for i in range(len(choices)) if i not in texts]
        if plain:
            host = self.host()
            prompts = [
                with_context(questions[i], choices[i].hits) if choices[i].hits else questions[i]
                for i in plain
            ]
            with host.using(None):
                new = generate(
                    host.base,
                    [prompt_ids(host.base.tokenizer, prompt) for prompt in prompts],
                    max_new_tokens=self.config.max_new_tokens,
                )
            texts |= self._words(plain, new)
        return [
            Answer(
                texts[i],
                choice.origin,
                choice.hits,
                tuple(shard for shard, _, _ in choice.experts),
                choice.score,
            )
            for i, choice in enumerate(choices)
        ]

    def mixture(self, choices: Sequence[Choice]) -> Mixture:
        """The adapters of choices that have some, ready for one batch.

        Raises:
            Damaged: see `ask`.
        """
        used = sorted({(shard, inputs) for c in choices for shard, inputs, _ in c.experts})
        merged = self.config.aggregation == "merge"
        stacked = self.serving.stacked(self.host(), used, merged=merged)
        depth = 1 if merged else max(len(c.experts) for c in choices)
        slots = np.zeros((depth, len(choices)), dtype=np.int64)
        weights = np.zeros((depth, len(choices)))
        weights[0] = 1.0
        if not merged:
            place = {key: i for i, key in enumerate(used)}
            for column, choice in enumerate(choices):
                # in the order of the shards, so that a sum has one order whatever the shares
                for row, (shard, inputs, share) in enumerate(sorted(choice.experts)):
                    slots[row, column] = place[shard, inputs]
                    weights[row, column] = share
        log = self.config.aggregation == "ensemble-log"
        return Mixture(stacked, slots, weights, mean_log_probability if log else mean_probability)

    def _words(self, indices: Sequence[int], new: Sequence[Sequence[int]]) -> dict[int, str]:
        tokenizer = self.host().base.tokenizer
        words = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]
        return dict(zip(indices, words, strict=True))


def make_answerer(opened: Opened, config: AnsweringConfig) -> Answerer:
    """An answerer over the pieces of an open workspace, with its own adapters in memory."""
    return Answerer(
        config=config,
        default_group=opened.config.retrieval.default_group,
        database=opened.database,
        store=opened.store,
        router=opened.router,
        serving=ServingAdapters(opened.checkpoints, config.adapter_memory << 20),
        host=lambda: opened.models.host,
        states=opened.states,
        required_groups=lambda: opened.layout.required_groups,
        named=Tombstones(opened.database, opened.keyring).named,
    )


def with_context(question: str, hits: Sequence[Hit]) -> str:
    """The question with the passages that may answer it, as the model reads them."""
    passages = "\n".join(hit.text for hit in hits)
    return _CONTEXT.format(passages=passages, question=question)
