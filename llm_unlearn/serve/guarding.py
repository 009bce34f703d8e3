"""The guard applied to answers: which texts are protected from whom, and what follows.

Guarantees: with a rule for a document's licence and the caller's groups, an answer that was given that
document, or whose adapter is asked near it, holds no longer run of it than the rule allows: tokens that
would complete one are not chosen. Where a text is continued as it is, its last words count as the
beginning of the run. Markers of turns in passages and questions are words, never turns.
Documents that were neither retrieved nor near the question or text are not compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_unlearn.answering import Choice
from llm_unlearn.config_guard import GuardConfig, GuardRule
from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import Damaged, KeyDestroyed
from llm_unlearn.models.chat import neutral
from llm_unlearn.models.sampling import Allowed
from llm_unlearn.retrieval import Hit
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.serve.guard import (
    Verbatim,
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

    @property
    def refuses_dumps(self) -> bool:
        """Whether anything here says that questions for whole texts are declined."""
        return self.config.refuse_dumps or any(rule.refuse_dumps for rule in self.config.rules)

    def removed(self, text: str, groups: Collection[str]) -> bool:
        """Whether a caller brings a text along that was taken down, and may not."""
        if not self.config.tombstones or len(text) < _LETTERS:
            return False
        if not set(self.config.tombstones_spare).isdisjoint(groups):
            return False
        return self._tombstones.refuses(Document(id="message", text=text)) is not None

    def drawn(self, choice: Choice, vector: Floats | None) -> list[Document]:
        """The documents that an answer from these sources may draw on, as far as a rule may hold for them.

        Args:
            vector: of the question, for the training documents near it.

        Raises:
            Damaged: one is there and cannot be read, so that nobody can tell its rule.
        """
        if not self.config.rules:
            return []
        handles = [hit.handle for hit in choice.hits] + self._near(choice, vector)
        return self._documents(handles)

    def rules(
        self, choice: Choice, drawn: Sequence[Document], groups: Collection[str]
    ) -> list[GuardRule]:
        """What holds for an answer from these sources: one rule or more, each once.

        Args:
            drawn: `drawn` of the choice.
        """
        licenses: list[str | None] = [hit.license for hit in choice.hits]
        licenses += [document.license for document in drawn]
        return list(dict.fromkeys(self.config.rule(n, groups) for n in licenses or [None]))

    def messages(
        self, tokenizer: Any, messages: Sequence[Message], rules: Sequence[GuardRule]
    ) -> list[Message]:
        """The conversation as the model reads it."""
        markers = tokenizer.all_special_tokens
        told = [m.model_copy(update={"content": neutral(m.content, markers)}) for m in messages]
        system = "\n".join(dict.fromkeys(rule.system for rule in rules if rule.system))
        return [Message(role="system", content=system), *told] if system else told

    def passages(self, tokenizer: Any, hits: Sequence[Hit], groups: Collection[str]) -> list[Hit]:
        """The passages as the model reads them."""
        markers = tokenizer.all_special_tokens
        read = []
        for hit in hits:
            text = neutral(hit.text, markers)
            if self.config.rule(hit.license, groups).drop_instructions:
                text = without_instructions(text)
            if text:
                read.append(dataclasses.replace(hit, text=text))
        return read

    def watch(
        self,
        choice: Choice,
        drawn: Sequence[Document],
        groups: frozenset[str],
        before: Sequence[int] = (),
    ) -> Watch:
        """What an answer from these sources is asked.

        Args:
            drawn: `drawn` of the choice.
            before: tokens of the text that it continues.
        """
        protected = self._protected(drawn, groups)
        limits = [
            Verbatim(texts, rule.verbatim_words, rule.verbatim_share)
            for rule, texts in protected.items()
            if rule.verbatim_words is not None
        ]
        close = [
            (rule.near, text)
            for rule, texts in protected.items()
            for text in texts
            if rule.near is not None
        ]
        limited = [(self.config.rule(h.license, groups).copied, h.text) for h in choice.hits]
        given: list[tuple[float, list[str]]] = []
        for most in {own for own, _ in limited if own is not None}:
            alone = [text for own, text in limited if own == most]
            stricter = [text for own, text in limited if own is not None and own < most]
            given += [(most, alone), (most, alone + stricter)]

        def ends(text: str) -> bool:
            if any(near(text, source) >= limit for limit, source in close):
                return True
            return len(text.split()) >= _ANSWER and any(
                copied(text, passages) >= most for most, passages in given
            )

        return Watch(limits, ends if close or given else None, before)

    def _protected(
        self, drawn: Sequence[Document], groups: Collection[str]
    ) -> dict[GuardRule, list[str]]:
        """Their texts, by the rule that holds for each."""
        found: dict[GuardRule, list[str]] = {}
        for document in drawn:
            texts = found.setdefault(self.config.rule(document.license, groups), [])
            texts.append(document.content)
            if document.messages:  # as it is learned: without the names of the roles
                texts.append("\n".join(m.content for m in document.messages))
        return found

    def _near(self, choice: Choice, vector: Floats | None) -> list[bytes]:
        """Training documents near the question, where adapters answer."""
        if not choice.experts or vector is None:
            return []
        most = self._opened.config.answering.route_neighbours
        return [record.handle for _, record, _ in self._opened.router.nearest(vector, most)]

    def _documents(self, handles: Sequence[bytes]) -> list[Document]:
        found = []
        for handle in dict.fromkeys(handles):
            record = self._opened.vault.find(handle)
            if record is None:
                continue
            try:
                found.append(self._opened.document(record))
            except KeyDestroyed:
                continue  # deleted meanwhile: the choice is made again
            except Damaged:
                if self._opened.vault.find(handle) is not None:
                    raise  # it is there, and which rule holds for it cannot be told
        return found
