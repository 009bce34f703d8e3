"""Cutting a text into chunks of bounded tokens, at sentences where possible, with offsets.

Guarantees: the spans are a pure function of text, tokenizer and settings; each chunk is
`text[start:end]`, holds at most the given tokens, and every character that is not white space at a
chunk's edge lies in some chunk. Boundaries and overlap are those of `semantic-text-splitter`
(Unicode sentences, then words, then characters).
"""

from __future__ import annotations

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer


class Chunker:
    """Cuts texts with one tokenizer.

    Args:
        tokenizer: the embedder's; its truncation and padding are ignored.
        tokens: most tokens of a chunk.
        overlap: most tokens that a chunk shares with the one before; below `tokens`.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, overlap: int) -> None:
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        self._splitter = TextSplitter.from_huggingface_tokenizer(plain, tokens, overlap=overlap)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character spans (start, end) of the chunks, in order; empty for a blank text."""
        return [(at, at + len(chunk)) for at, chunk in self._splitter.chunk_indices(text)]
