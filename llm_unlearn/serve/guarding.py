"""The guard applied to answers: which texts are protected from whom, and what follows.

Guarantees: with a rule for a document's licence and the caller's groups, an answer that was given that
document, or whose adapter is asked near it, holds no longer run of it than the rule allows: tokens that
would complete one are not chosen. Where a text is continued as it is, its last words count as the
beginning of the run. Markers of turns in passages and questions are words, never turns.
Documents that were neither retrieved nor near the question or text are not compared with.
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
from llm_unlearn.takedown.overlap import fold
from llm_unlearn.takedown.tombstones import Tombstones

if TYPE_CHECKING:
    from llm_unlearn.opened import Opened

_LETTERS = 60  # of the shortest text that a tombstone recognises in other words
_ANSWER = 30  # words of the shortest answer that can give passages back


@dataclass(frozen=True)
class Watch:
    """What is asked of one answer: of each token before it comes, of the words so far.

    Args:
        limits: kept by every token.
        before: tokens of the text that the answer continues.
    """

    limits: Sequence[Verbatim] = ()
    ends: Callable[[str], bool] | None = None
    before: Sequence[int] = ()

    def constraint(self, tokenizer: Any, ids: Sequence[int]) -> Allowed | None:
        """Which tokens may follow `ids`; only the end of what was said is decoded for each.

        A token that adds to no word is allowed: what stands there was, or is the caller's own.
        """
        limits = self.limits
        if not limits:
            return None
        said = [*self.before, *ids]
        # more words than the longest run: what the cut does to the first of them is no matter
        end, words = _end(tokenizer, said, max(limit.words for limit in limits) + 3)
        shared = [limit for limit in limits if limit.share < 1]

        def allowed(token: int) -> bool:
            text = tokenizer.decode([*end, token], skip_special_tokens=True)
            if fold(text).words == words:
                return True
            if any(limit.ends(text) for limit in limits):
                return False
            if not shared:
                return True
            whole = tokenizer.decode([*ids, token], skip_special_tokens=True)
            return not any(limit.exceeds(whole) for limit in shared)

        return allowed


def _end(tokenizer: Any, ids: Sequence[int], least: int) -> tuple[list[int], tuple[str, ...]]:
    """The last of some tokens that hold so many words, or all of them; and their words."""
    span = 2 * least
    while True:
        end = list(ids[-span:])
        words = fold(tokenizer.decode(end, skip_special_tokens=True)).words
        if len(words) >= least or span >= len(ids):
            return end, words
        span *= 2


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
        return any(self.removed(message.content) for message in messages)

    def removed(self, text: str) -> bool:
        """Whether a text brings along one that was taken down."""
        if not self.config.tombstones or len(text) < _LETTERS:
            return False
        return self._tombstones.refuses(Document(id="message", text=text)) is not None

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

    def watch(
        self,
        choice: Choice,
        vector: Floats | None,
        groups: frozenset[str],
        before: Sequence[int] = (),
    ) -> Watch:
        """What an answer from these sources is asked.

        Args:
            before: tokens of the text that it continues.
        """
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

        watched = bool(close) or (most is not None and bool(passages))
        return Watch(limits, ends if watched else None, before)

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
                    texts = found.setdefault(number, [])
                    texts.append(document.content)
                    if document.messages:  # as it is learned: without the names of the roles
                        texts.append("\n".join(m.content for m in document.messages))
                    break
        return [(self.config.rules[number], texts) for number, texts in sorted(found.items())]
