"""Spans: bounded, covering, at sentences, deterministic."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llm_unlearn.retrieval.chunking import Chunker


def test_chunks_end_at_sentences_and_overlap(tools: Any) -> None:
    """With one token a byte: each sentence has 14 characters, two and a blank make 29 tokens.

    A chunk of at most 30 tokens holds two sentences; an overlap of 15 repeats one of them.
    """
    text = "The moon rose. The moon fell. The moon hid."
    whole = Chunker(tools.tokenizer(), 30, 0).spans(text)
    assert [text[a:b] for a, b in whole] == ["The moon rose. The moon fell.", "The moon hid."]
    shared = Chunker(tools.tokenizer(), 30, 15).spans(text)
    assert [text[a:b] for a, b in shared] == [
        "The moon rose. The moon fell.",
        "The moon fell. The moon hid.",
    ]


def test_offsets_count_characters_not_bytes(tools: Any) -> None:
    text = "Zoë sang «été». Then 🌙🌙🌙 rose over the fjord, and all was still."
    spans = Chunker(tools.tokenizer(), 24, 0).spans(text)
    assert len(spans) > 2
    assert "".join(text[a:b] for a, b in spans).replace(" ", "") == text.replace(" ", "")


def test_truncation_of_the_tokenizer_is_ignored(tools: Any) -> None:
    """A tokenizer that stops counting at 16 would let a chunk of any length pass as 16 tokens."""
    tokenizer: Tokenizer = tools.tokenizer()
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=64)
    text = "moonlight " * 40
    plain = Chunker(tools.tokenizer(), 40, 4).spans(text)
    assert Chunker(tokenizer, 40, 4).spans(text) == plain
    assert tokenizer.truncation is not None  # the caller's tokenizer is untouched


@settings(deadline=None, max_examples=60)
@given(text=st.text(min_size=1, max_size=300), tokens=st.integers(8, 60), data=st.data())
def test_every_visible_character_is_in_a_bounded_chunk(
    tools: Any, text: str, tokens: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tokens - 1))
    tokenizer = tools.tokenizer()
    spans = Chunker(tokenizer, tokens, overlap).spans(text)
    covered = set[int]()
    for start, end in spans:
        assert 0 <= start < end <= len(text)
        assert len(tokenizer.encode(text[start:end]).ids) <= tokens
        covered.update(range(start, end))
    assert spans == sorted(spans)
    assert all(text[at].isspace() for at in set(range(len(text))) - covered)
    assert Chunker(tokenizer, tokens, overlap).spans(text) == spans
