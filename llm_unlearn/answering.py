"""From a question to an answer: from the store, from an adapter, or none.

Guarantees: a caller without groups gets no answer; the store is searched only over what the groups may
see; an adapter answers only callers in the group that its shard belongs to, or in the default group
where it learned documents without access groups; the adapter that answers is a clean checkpoint, and
routing looks only at documents that it has been trained on. If anything in the workspace changed
between choosing the sources and the last word, the answer is thrown away and made again, so that
nothing accepted for removal is in any answer returned after it. Threads may ask at once; the model
takes them in turn.
A question that nothing live is near to gets the same fixed words whatever the reason.
It does not promise that a small model reads its context well, nor that it never invents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llm_unlearn.config import AnsweringConfig
from llm_unlearn.errors import AccessDenied, Damaged
from llm_unlearn.models.causal import generate
from llm_unlearn.models.chat import prompt_ids
from llm_unlearn.models.lora import AdapterHost, AdapterState
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.embedding import Floats, encode
from llm_unlearn.retrieval.store import Hit, Store
from llm_unlearn.sisa.build import ShardState
from llm_unlearn.sisa.checkpoints import Checkpoints

Origin = Literal["store", "adapter", "base", "declined"]
Covered = dict[bytes, tuple[int, bytes]]
"""Handle of a document that a serving adapter was trained on: its shard and that adapter's inputs."""

# Of eight wordings tried on SmolLM2-135M this one read the passages best (docs/LOG.md): a small
# model copies better than it answers, and forgets a question that stands only at the end.
_CONTEXT = (
    "{question}\n\nThe answer is somewhere in this text:\n{passages}\n\n"
    "Copy the sentence of the text that answers the question: {question}"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets.

    `score` is the cosine of the nearest passage or training document; `shard` the adapter that
    answered; `citations` the passages given to the model, best first.
    """

    text: str
    origin: Origin
    citations: tuple[Hit, ...] = ()
    shard: int | None = None
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class _Choice:
    origin: Origin
    hits: tuple[Hit, ...] = ()
    shard: int | None = None
    inputs: bytes = b""
    score: float = 0.0


@dataclass
class Answerer:
    """Answers questions over one open workspace.

    Args:
        states: the shards as they stand now, recomputed when the workspace changed.
        required_groups: shards that answer one access group only (`Layout.required_groups`).
    """

    config: AnsweringConfig
    default_group: str
    database: Database
    store: Store
    router: Store
    checkpoints: Checkpoints
    host: Callable[[], AdapterHost]
    states: Callable[[], list[ShardState]]
    required_groups: Callable[[], Mapping[int, str]]
    _adapters: dict[int, tuple[bytes, AdapterState]] = field(default_factory=dict)
    _covered: tuple[int, Covered] | None = None

    def ask(self, questions: Sequence[str], groups: Collection[str]) -> list[Answer]:
        """Answer each question on its own; those that use the same adapter share batches.

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
            choices = self._choose(vectors, groups)
            failure: Damaged | None = None
            answers: list[Answer] = []
            try:
                answers = self._answer(questions, choices)
            except Damaged as error:  # perhaps only because a takedown destroyed it meanwhile
                failure = error
            # nothing was committed between the first look and the last word
            if self.database.change() == change:
                if failure is not None:
                    raise failure
                return answers

    def _choose(self, vectors: Sequence[Floats], groups: Collection[str]) -> list[_Choice]:
        change = self.database.change()
        if self._covered is None or self._covered[0] != change:
            covered = {
                record.handle: (state.shard, state.serving.inputs)
                for state in self.states()
                if state.serving
                for part in state.wanted[: state.clean]
                for record in part.records
            }
            kept = {inputs for _, inputs in covered.values()}
            self._adapters = {s: a for s, a in self._adapters.items() if a[0] in kept}
            self._covered = (change, covered)
        covered, required = self._covered[1], self.required_groups()
        if required or self.default_group not in groups:
            covered = {
                handle: place
                for handle, place in covered.items()
                if required.get(place[0], self.default_group) in groups
            }
        return [self._choose_one(vector, groups, covered) for vector in vectors]

    def _choose_one(
        self,
        vector: Floats,
        groups: Collection[str],
        covered: Covered,
    ) -> _Choice:
        hits = self.store.search_vector(vector, groups=groups, k=self.config.retrieve)
        found = tuple(hit for hit in hits if hit.score >= self.config.store_threshold)
        routed = None
        if covered:
            routed = self._route(vector, covered)
        if found and (routed is None or found[0].score >= routed.score):
            return _Choice("store", hits=found, score=found[0].score)
        if routed is not None:
            return routed
        return _Choice("base" if self.config.fallback == "base" else "declined")

    def _route(self, vector: Floats, covered: Covered) -> _Choice | None:
        """The shard with the largest sum of cosines among the nearest covered documents.

        Equal sums go to the lower shard number; None when the nearest is below the threshold.
        """
        near = self._nearest_covered(vector, covered)
        if not near or near[0][0] < self.config.route_threshold:
            return None
        votes: dict[int, float] = {}
        for score, handle in near:
            shard = covered[handle][0]
            votes[shard] = votes.get(shard, 0.0) + max(score, 0.0)
        shard = min(votes, key=lambda s: (-votes[s], s))
        inputs = next(inputs for _, handle in near for s, inputs in [covered[handle]] if s == shard)
        return _Choice("adapter", shard=shard, inputs=inputs, score=near[0][0])

    def _nearest_covered(self, vector: Floats, covered: Covered) -> list[tuple[float, bytes]]:
        """The nearest `route_neighbours` chunks of covered documents as (cosine, handle).

        Looks further while the nearest ones are not covered, as after a rollback.
        """
        wanted, k = self.config.route_neighbours, self.config.route_neighbours
        while True:
            near = self.router.nearest(vector, k)
            found = [(score, r.handle) for score, r, _ in near if r.handle in covered]
            if len(found) >= wanted or len(near) < k:
                return found[:wanted]
            k *= 2

    def _answer(self, questions: Sequence[str], choices: Sequence[_Choice]) -> list[Answer]:
        texts = {
            i: self.config.decline_message
            for i, choice in enumerate(choices)
            if choice.origin == "declined"
        }
        for shard in sorted({c.shard for c in choices if c.shard is not None}):
            asked = [i for i, choice in enumerate(choices) if choice.shard == shard]
            adapter = self._adapter(shard, choices[asked[0]].inputs)
            texts |= self._generate(adapter, asked, [questions[i] for i in asked])
        plain = [i for i in range(len(choices)) if i not in texts]
        if plain:
            prompts = [
                _with_context(questions[i], choices[i].hits) if choices[i].hits else questions[i]
                for i in plain
            ]
            texts |= self._generate(None, plain, prompts)
        return [
            Answer(texts[i], choice.origin, choice.hits, choice.shard, choice.score)
            for i, choice in enumerate(choices)
        ]

    def _generate(
        self, adapter: AdapterState | None, indices: Sequence[int], prompts: Sequence[str]
    ) -> dict[int, str]:
        host = self.host()
        tokenizer = host.base.tokenizer
        with host.using(adapter):
            new = generate(
                host.base,
                [prompt_ids(tokenizer, prompt) for prompt in prompts],
                max_new_tokens=self.config.max_new_tokens,
            )
        words = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in new]
        return dict(zip(indices, words, strict=True))

    def _adapter(self, shard: int, inputs: bytes) -> AdapterState:
        """The shard's serving adapter, kept in memory until its inputs change."""
        held = self._adapters.get(shard)
        if held is None or held[0] != inputs:
            self._adapters.pop(shard, None)
            for listed in self.checkpoints.listed().values():
                if listed.shard == shard and listed.inputs == inputs:
                    self._adapters[shard] = (inputs, self.checkpoints.load(listed).adapter)
                    break
            else:
                raise Damaged(f"The checkpoint that serves shard {shard} is gone.", "Run train.")
        return self._adapters[shard][1]


def _with_context(question: str, hits: Sequence[Hit]) -> str:
    passages = "\n".join(hit.text for hit in hits)
    return _CONTEXT.format(passages=passages, question=question)
