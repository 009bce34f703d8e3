"""From a request to where its answer comes from and what the model reads.

    workspace   as the config says: passages, adapters, or neither, like `Workspace.ask`
    route       the same, with one adapter, that of the nearest training documents
    ensemble    the same, with all adapters that the caller may reach, averaged
    base        the base model alone: no passage, no adapter
    shard-N     adapter N alone

Guarantees: groups apply before the search and to adapters; `choose` is a pure function of the question,
the groups and the live workspace, so that asking it again tells whether an answer still stands.
The last message of the user is the question; what came before it is read, not searched for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from llm_unlearn.answering import Answerer, Choice, make_answerer, with_context
from llm_unlearn.config_guard import GuardRule
from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import AccessDenied, InputError, NotFound
from llm_unlearn.models.chat import render
from llm_unlearn.retrieval.embedding import Floats, encode
from llm_unlearn.routing import permitted
from llm_unlearn.serve.guard import asks_for_all
from llm_unlearn.serve.guarding import Guarding, Watch

if TYPE_CHECKING:
    from llm_unlearn.models.lora import AdapterHost
    from llm_unlearn.opened import Opened

WHOLE: Final = ("workspace", "route", "ensemble")
_SHARD = re.compile(r"shard-(\d{1,4})")
_BASE = Choice("base")
_END: Final = (
    2000  # letters at the end of a raw prompt by which training documents near it are found
)
Mixtures = Mapping[str, Answerer]


def answerers(opened: Opened) -> dict[str, Answerer]:
    """One answerer for each way to aggregate; they share the adapters in memory, and where they stand."""
    own = make_answerer(opened, opened.config.answering)
    ways = {"workspace": own}
    for way in ("route", "ensemble"):
        config = own.config.model_copy(update={"aggregation": way})
        ways[way] = dataclasses.replace(own, config=config)
    return ways


def models(opened: Opened, answerer: Answerer, groups: Sequence[str]) -> list[str]:
    """The names that these groups may ask for."""
    now = answerer.stand()
    default = opened.config.retrieval.default_group
    shards = permitted(now, answerer.required_groups(), groups, default)
    whole = list(WHOLE) if groups else []
    return [*whole, "base", *(f"shard-{shard}" for shard in sorted(shards))]


@dataclass
class Ask:
    """One answer that is wanted.

    With `raw` the guard declines a text that was taken down, and watches the words of adapters; what
    it does to conversations and passages does not arise.

    Args:
        model: one of the names above.
        messages: the conversation.
        raw: instead of it, a prompt that is continued as it is: text or token ids.
        guarding: what is guarded; None for nothing.
    """

    ways: Mixtures
    model: str
    groups: frozenset[str]
    messages: Sequence[Message] = ()
    raw: str | tuple[int, ...] | None = None
    guarding: Guarding | None = None
    _vector: Floats | None = field(default=None, repr=False)
    _drawn: tuple[Choice, list[Document]] | None = field(default=None, repr=False)

    @property
    def answerer(self) -> Answerer:
        """Who chooses the sources and mixes the adapters."""
        return self.ways.get(self.model, self.ways["workspace"])

    @property
    def question(self) -> str:
        """The last words of the user."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    def choose(self) -> Choice:
        """Where the answer comes from, as the workspace stands.

        Raises:
            NotFound: no such model.
            AccessDenied: no group, where one is needed; a text to continue that was taken down.
            Damaged: a document that a rule may hold for cannot be read.
        """
        self._drawn = None  # what was removed meanwhile leaves memory
        guarding = self.guarding
        if guarding is not None:
            if any(guarding.removed(m.content, self.groups) for m in self.messages):
                return Choice("declined")
            if self.raw is not None:
                self._check_raw(guarding)
        choice = self._source()
        if self.messages and guarding is not None and guarding.refuses_dumps:
            wants_all = asks_for_all(self.messages[-1].content)
            if wants_all and any(rule.refuse_dumps for rule in self._rules(choice)):
                return Choice("declined")
        return choice

    def _check_raw(self, guarding: Guarding) -> None:
        """Refuse to continue a prompt that brings along what was taken down, or names its subject."""
        text, scored = self._text(), "scores alone (`echo`, `max_tokens` 0) are given."
        if guarding.removed(text, self.groups):
            raise AccessDenied(
                "The prompt brings along a text that was taken down.", f"Ask without it; {scored}"
            )
        # a removed subject reaches no adapter
        if self.model != "base" and self.answerer.named(text):
            raise AccessDenied(
                "The prompt names a subject that was taken down.", f"Ask without it; {scored}"
            )

    def _source(self) -> Choice:
        if self.model == "base":
            return _BASE
        answerer = self.answerer
        if self.model in WHOLE and self.raw is None:
            if not self.groups:
                raise AccessDenied(
                    "This API key has no groups, so nothing may be seen.",
                    "Ask model 'base', or have a key made with groups.",
                )
            if self._vector is None:
                self._vector = encode(answerer.store.embedder, [self.question])[0]
            choice = answerer.choose([self.question], [self._vector], self.groups)[0]
            # a removed subject that came up earlier in the conversation reaches no adapter either
            earlier = "\n".join(m.content for m in self.messages[:-1])
            if choice.experts and earlier and answerer.named(earlier):
                return Choice("declined")
            return choice
        now = answerer.stand()
        default = answerer.default_group
        shards = permitted(now, answerer.required_groups(), self.groups, default)
        named = _SHARD.fullmatch(self.model)
        if named and int(named[1]) in shards:
            shard = int(named[1])
            # a removed subject reaches no adapter, however early it came up
            if any(answerer.named(message.content) for message in self.messages):
                return Choice("declined")
            return Choice("adapter", experts=((shard, now.serving[shard], 1.0),))
        if self.model == "ensemble" and shards:
            order = sorted(shards)
            experts = tuple((s, now.serving[s], 1 / len(order)) for s in order)
            return Choice("adapter", experts=experts)
        # the same words whether there is none or none for this caller
        raise NotFound(f"There is no model {self.model!r} here.", "List them at /v1/models.")

    def prompt(self, choice: Choice) -> list[int]:
        """The token ids that the model reads.

        Raises:
            Damaged: as `choose`.
        """
        tokenizer = self.answerer.host().base.tokenizer
        if self.raw is not None:
            return encoded(tokenizer, self.raw)
        messages, hits = list(self.messages), list(choice.hits)
        if self.guarding is not None:
            messages = self.guarding.messages(tokenizer, messages, self._rules(choice))
            hits = self.guarding.passages(tokenizer, hits, self.groups)
        if hits:
            last = max(i for i, m in enumerate(messages) if m.role == "user")
            words = with_context(messages[last].content, hits)
            messages[last] = Message(role="user", content=words)
        text = render(tokenizer, messages, prompt=True)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def watch(self, choice: Choice, ids: Sequence[int]) -> Watch:
        """What is asked of its words as they come, after these tokens of the prompt.

        Raises:
            Damaged: as `choose`.
        """
        if self.guarding is None:
            return Watch()
        before = () if self.raw is None else ids
        drawn = self._documents(choice)
        self._drawn = None  # the last to need them
        return self.guarding.watch(choice, drawn, self.groups, before)

    def _rules(self, choice: Choice) -> list[GuardRule]:
        """The rules of the guard for the documents of a choice."""
        if self.guarding is None:
            return []
        return self.guarding.rules(choice, self._documents(choice), self.groups)

    def _documents(self, choice: Choice) -> list[Document]:
        """What the choice draws on, found and decrypted once for its rules, its prompt and its watch."""
        guarding = self.guarding
        if guarding is None:
            return []
        # every `choose` makes a new choice: what was drawn before a commit is not used after it
        if self._drawn is None or self._drawn[0] is not choice:
            if self._vector is None and choice.experts and guarding.config.rules:
                text = self.question if self.raw is None else self._text()[-_END:]
                self._vector = encode(self.answerer.store.embedder, [text])[0]
            self._drawn = choice, guarding.drawn(choice, self._vector)
        return self._drawn[1]

    def _text(self) -> str:
        """The words of a raw prompt."""
        if isinstance(self.raw, str):
            return self.raw
        tokenizer = self.answerer.host().base.tokenizer
        ids = encoded(tokenizer, self.raw or ())
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text


def fits(host: Callable[[], AdapterHost], texts: Sequence[str | tuple[int, ...]]) -> None:
    """Refuse what the model cannot read before anything looks for passages and names in it.

    Raises:
        InputError: it has more tokens than the model can read.
    """
    base = host().base
    most = getattr(base.model.config, "max_position_embeddings", None)
    if most is None:
        return
    tokens = 0
    for text in texts:
        tokens += len(encoded(base.tokenizer, text))
        if tokens > most:
            raise InputError(
                f"The prompt has more tokens than the {most} that the model can read.",
                "Ask for less, or send a shorter conversation.",
            )


def encoded(tokenizer: Any, raw: str | tuple[int, ...]) -> list[int]:
    """A raw prompt as token ids.

    Raises:
        InputError: an id that the model does not have.
    """
    if isinstance(raw, str):
        ids: list[int] = tokenizer(raw, add_special_tokens=False)["input_ids"]
        return ids
    if any(not 0 <= token < len(tokenizer) for token in raw):
        raise InputError(f"A token id is not among the model's {len(tokenizer)}.")
    return list(raw)
