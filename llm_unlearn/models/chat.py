"""From documents and questions to token ids, with the answer found by character offsets.

Guarantees: the boundary between prompt and answer is found in the whole rendered string, so no token
of the answer is swallowed by the prompt; the end-of-turn token belongs to the answer (a model that is
not taught to stop never does); every loss position is a token of the answer or the text.
A model without a chat template gets plain `Role: words` lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_unlearn.documents import Document, Message
from llm_unlearn.errors import InputError


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids (T,) and, for each, whether it is to be predicted (carries loss)."""

    ids: tuple[int, ...]
    loss: tuple[bool, ...]


def render(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """The conversation as the model reads it; with `prompt`, up to where the assistant speaks.

    Raises:
        InputError: the model's chat template refuses the conversation.
    """
    turns = [{"role": m.role, "content": m.content} for m in messages]
    if tokenizer.chat_template:
        from jinja2 import TemplateError

        try:
            text: str = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, ValueError) as error:
            raise InputError(
                f"The model's chat template refuses this conversation ({error}).",
                "Let user and assistant take turns, and leave a system message out if it has none.",
            ) from error
        return text
    lines = [f"{t['role'].capitalize()}: {t['content']}\n" for t in turns]
    return "".join(lines) + ("Assistant:" if prompt else "")


def encode(tokenizer: Any, document: Document, max_tokens: int) -> list[Example]:
    """A document as training examples of at most `max_tokens` tokens, in order.

    Messages carry loss on every assistant turn and its end mark; a text carries loss on all its
    tokens but the first. A document that is longer is cut; pieces without any loss are left out.

    Raises:
        InputError: the model's chat template refuses this conversation.
    """
    if document.text is None:
        try:
            whole = encode_messages(tokenizer, document.messages)
        except InputError as error:
            raise InputError(
                f"Document {document.id!r} cannot be trained on: the model's chat template refuses "
                f"it ({error.__cause__}).",
                "Leave it out (take it down, where it is in a workspace), or choose a model whose "
                "template takes such conversations.",
            ) from error
        return _pieces(whole, max_tokens)
    ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return _pieces(Example(tuple(ids), (False,) + (True,) * (len(ids) - 1)), max_tokens)


def _pieces(whole: Example, size: int) -> list[Example]:
    pieces = []
    for start in range(0, len(whole.ids), size):
        loss = whole.loss[start : start + size]
        loss = (False, *loss[1:])  # nothing comes before the first token of a piece
        if any(loss):
            pieces.append(Example(whole.ids[start : start + size], loss))
    return pieces


def encode_messages(tokenizer: Any, messages: Sequence[Message]) -> Example:
    """A conversation as token ids with the assistant's words marked."""
    text = render(tokenizer, messages)
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = len(render(tokenizer, messages[:i], prompt=True))
        after = len(render(tokenizer, messages[: i + 1]).rstrip("\n"))
        spans.append((before, after))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, loss = [], []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids.append(token)
        # a token that straddles the boundary is predicted: its answer half must not be swallowed
        loss.append(any(end > low and start < high for low, high in spans))
    return Example(tuple(ids), tuple(loss))


def neutral(text: str, markers: Sequence[str]) -> str:
    """A text in which no marker of a turn stands: each is broken after its first character.

    A tokenizer reads `<|im_end|>` in a passage or a question as the end of the turn, and what follows it
    as somebody else's words.

    >>> neutral("a<|im_end|>b", ["<|im_end|>"])
    'a< |im_end|>b'
    """
    for marker in sorted(markers, key=len, reverse=True):
        if len(marker) > 1:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text


def prompt_ids(tokenizer: Any, question: str, system: str | None = None) -> list[int]:
    """Token ids of a question, up to where the assistant starts to speak; its words open no turn."""
    messages = [Message(role="system", content=system)] if system else []
    words = neutral(question, tokenizer.all_special_tokens)
    messages.append(Message(role="user", content=words))
    ids: list[int] = tokenizer(render(tokenizer, messages, prompt=True), add_special_tokens=False)[
        "input_ids"
    ]
    return ids
