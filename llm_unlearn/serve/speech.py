"""From tokens to text as it is spoken: whole characters, stop sequences, the edges trimmed.

Guarantees: the pieces together are the decoded tokens up to the first stop sequence, whatever the
pieces; no piece holds half a character, or the beginning of a stop sequence that may still complete;
with `trim` white space at the edges is left out, as `Workspace.ask` leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Speech:
    """The text of one answer.

    Args:
        stops: sequences that end it; they are not part of it.
        trim: leave out white space at the beginning and the end.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), *, trim: bool = True) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._trim = trim
        self.ids: list[int] = []
        self.text = ""  # all that was given out
        self.stopped = False

    def add(self, token: int) -> str:
        """One more token; the text that is settled by it."""
        self.ids.append(token)
        return self._settle(final=False)

    def close(self) -> str:
        """No more tokens; the text that was held back."""
        return "" if self.stopped else self._settle(final=True)

    @property
    def whole(self) -> str:
        """What the tokens so far say, also what is held back."""
        return self._decoded()

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        return text.lstrip() if self._trim else text

    def _settle(self, *, final: bool) -> str:
        text = self._decoded()
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            text = text[: min(found)]
            final = True
        if not final:
            text = text.rstrip("\ufffd")  # the rest of the character may come
            text = text[: len(text) - self._held(text)]
        if self._trim:
            text = text.rstrip()
        if not text.startswith(self.text):
            return ""  # a tokenizer that rewrites what it said: wait until it goes on from there
        new = text[len(self.text) :]
        self.text = text
        return new

    def _held(self, text: str) -> int:
        """Length of the longest end of the text with which a stop sequence begins."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
