"""The guard applied to answers: which texts are protected from whom, and what follows.

Guarantees: with a rule for a document's licence and the caller's groups, an answer that was given that
document, or whose adapter is asked near it, holds no longer run of it than the rule allows: tokens that
would complete one are not chosen. Markers of turns in passages and questions are words, never turns.
Documents that were neither retrieved nor near the question are not compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_unlearn.answering import Choice
from llm_unlearn.config_guard import GuardConfig, GuardRule
from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import Damaged
from llm_unlearn.models.chat import neutral
from llm_unlearn.models.sampling import Allowed
from llm_unlearn.retrieval import Hit
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.serve.guard import (
    Verbatim,
    asks_for_all,
    copied,
    near,
    without_instructions,
)
from llm_unlearn.takedown.tombstones import Tombstones

if TYPE_CHECKING:
    from llm_unlearn.opened import Opened

_LETTERS = 60  # of the shortest text that a tombstone recognises in other words
_ANSWER = 30  # words of the shortest answer that can give passages back


@dataclass(frozen=True)
class Watch:
    """What is asked of one answer: of each token before it comes, of the words so far."""

    allows: Callable[[str], bool] | None = None
    ends: Callable[[str], bool] | None = None

    def constraint(self, tokenizer: Any, ids: Sequence[int]) -> Allowed | None:
        """Which tokens may follow `ids`."""
        allows = self.allows
        if allows is None:
            return None
        return lambda token: allows(tokenizer.decode([*ids, token], skip_special_tokens=True))


class Guarding:
    """The guard of one workspace."""

    def __init__(self, opened: Opened, config: GuardConfig) -> None:
        self._opened = opened
        self.config = config
        self._tombstones = Tombstones(opened.database, opened.keyring)

    def refuses(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation is declined before anything is looked for."""
        if self.config.refuse_dumps and asks_for_all(messages[-1].content):
            return True
        return self.config.tombstones and any(
            self._tombstones.refuses(Document(id="message", text=message.content)) is not None
            for message in messages
            if len(message.content) >= _LETTERS
        )

    def messages(self, tokenizer: Any, messages: Sequence[Message]) -> list[Message]:
        """The conversation as the model reads it."""
        markers = tokenizer.all_special_tokens
        told = [m.model_copy(update={"content": neutral(m.content, markers)}) for m in messages]
        if self.config.system:
            told.insert(0, Message(role="system", content=self.config.system))
        return told

    def passages(self, tokenizer: Any, hits: Sequence[Hit]) -> list[Hit]:
        """The passages as the model reads them."""
        markers = tokenizer.all_special_tokens
        read = []
        for hit in hits:
            text = neutral(hit.text, markers)
            if self.config.drop_instructions:
                text = without_instructions(text)
            if text:
                read.append(dataclasses.replace(hit, text=text))
        return read

    def watch(self, choice: Choice, vector: Floats | None, groups: frozenset[str]) -> Watch:
        """What an answer from these sources is asked."""
        protected = self._protected(choice, vector, groups) if self.config.rules else []
        limits = [
            Verbatim(texts, rule.verbatim_words, rule.verbatim_share)
            for rule, texts in protected
            if rule.verbatim_words is not None
        ]
        close = [
            (rule.near, text)
            for rule, texts in protected
            for text in texts
            if rule.near is not None
        ]
        passages = [hit.text for hit in choice.hits]
        most = self.config.copied

        def ends(text: str) -> bool:
            if any(near(text, source) >= limit for limit, source in close):
                return True
            return (
                most is not None and len(text.split()) >= _ANSWER and copied(text, passages) >= most
            )

        def allows(text: str) -> bool:
            return all(limit.allows(text) for limit in limits)

        watched = bool(close) or (most is not None and bool(passages))
        return Watch(allows if limits else None, ends if watched else None)

    def _protected(
        self, choice: Choice, vector: Floats | None, groups: frozenset[str]
    ) -> list[tuple[GuardRule, list[str]]]:
        opened = self._opened
        handles = [hit.handle for hit in choice.hits]
        if choice.experts and vector is not None:
            most = opened.config.answering.route_neighbours
            handles += [record.handle for _, record, _ in opened.router.nearest(vector, most)]
        found: dict[int, list[str]] = {}
        for handle in dict.fromkeys(handles):
            record = opened.vault.find(handle)
            if record is None:
                continue
            try:
                document = opened.document(record)
            except Damaged:  # deleted meanwhile: the choice is made again
                continue
            for number, rule in enumerate(self.config.rules):
                if (not rule.licenses or document.license in rule.licenses) and (
                    not rule.groups or groups & set(rule.groups)
                ):
                    found.setdefault(number, []).append(document.content)
                    break
        return [(self.config.rules[number], texts) for number, texts in sorted(found.items())]
