"""Texts as token ids, and which of their tokens are targets.

Guarantees: which tokens are answer tokens is decided by character offsets in the whole string,
never by tokenizing the prompt alone, so a token that straddles the boundary is a target and no other
prompt token is.
It knows no model: whether ids fit its vocabulary and context is checked by `passes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from llm_unlearn.errors import InputError


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as a model sees it.

    Attributes:
        ids: the token ids, special tokens included.
        mask: whether each token is a target to be scored; the first never is: nothing is before it.
        spans: for each token, its characters `[start, end)` in the whole string; empty for a token
            that stands for none.
    """

    ids: list[int]
    mask: list[bool]
    spans: list[tuple[int, int]]


def encode_spans(
    tokenizer: Any,
    texts: Sequence[str],
    targets: Sequence[tuple[int, int]],
    *,
    special_tokens: bool = True,
) -> list[Encoded]:
    """Encode each text; its targets are the tokens that hold a character of `targets[i]`.

    Args:
        tokenizer: a fast (offset-giving) Hugging Face tokenizer.
        texts: the whole strings.
        targets: for each, the characters `[start, end)` to be scored.
        special_tokens: whether the tokenizer adds its own (a chat template already holds them).

    Raises:
        InputError: the tokenizer gives no offsets, or a text has no token to be scored.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets.",
            "Load it with use_fast=True.",
        )
    if len(texts) != len(targets):
        raise InputError(f"{len(texts)} texts but {len(targets)} targets.", "Give one a text.")
    if not texts:
        return []
    batch = tokenizer(
        list(texts),
        add_special_tokens=special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        truncation=False,
        padding=False,
    )
    encoded = []
    for i, (start, end) in enumerate(targets):
        ids = [int(t) for t in batch["input_ids"][i]]
        spans = _whole(batch["offset_mapping"][i])
        mask = [a < end and b > max(start, a) for a, b in spans]
        if mask:
            mask[0] = False
        if not any(mask):
            raise InputError(
                f"text {i} has no token to score in characters {start} to {end}.",
                "Give a text of at least two tokens, or a prompt before it.",
            )
        encoded.append(Encoded(ids, mask, spans))
    return encoded


def _whole(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give tokens of blanks their characters back: with `trim_offsets` they span none.

    "on  the" as "on", " ", " the" comes as (0, 2), (3, 3), (4, 7): the blank's is (2, 3).
    """
    ends = accumulate((0, *(end for _, end in offsets)), max)
    return [(min(a, e) if a == b else a, b) for (a, b), e in zip(offsets, ends, strict=False)]


def encode_pairs(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], *, special_tokens: bool = True
) -> list[Encoded]:
    """Encode `prompt + answer` as one string; the tokens that hold answer characters are targets.

    Nothing is put between the two: the prompt ends as it should (a blank, a line end, a header).
    An empty one scores the whole text, but for a first token that the tokenizer puts none before.
    """
    return encode_spans(
        tokenizer,
        [prompt + answer for prompt, answer in pairs],
        [(len(prompt), len(prompt) + len(answer)) for prompt, answer in pairs],
        special_tokens=special_tokens,
    )


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[Encoded]:
    """Encode whole texts, every token that has one before it being a target."""
    return encode_pairs(tokenizer, [("", text) for text in texts])


def encode_chats(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], *, system: str | None = None
) -> list[Encoded]:
    """Encode (question, answer) through the tokenizer's chat template; the answer is the target.

    Raises:
        InputError: the tokenizer has no chat template, or the template does not hold the answer
            (many strip white space at its ends: strip it first).
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template.", "Use encode_pairs.")
    texts: list[str] = []
    targets: list[tuple[int, int]] = []
    head = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in pairs:
        said = (("user", question), ("assistant", answer))
        messages = [*head, *({"role": role, "content": words} for role, words in said)]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        # The answer is the last thing said: what follows it is only the template's own ending.
        start = text.rfind(answer)
        if not answer or start < 0:
            raise InputError(
                f"the chat template does not keep the answer {answer[:40]!r} as it is.",
                "Strip white space at its ends, or use encode_pairs.",
            )
        texts.append(text)
        targets.append((start, start + len(answer)))
    return encode_spans(tokenizer, texts, targets, special_tokens=False)
