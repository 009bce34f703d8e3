"""Sentence embedders, in shapes that the text alone fixes.

Guarantees: the vector of a text depends, bit for bit, on that text, the model and the pinned thread
count only: each text is embedded in a batch of its own, so no neighbour can change it. Costs about
a third of the speed of mixed batches on short texts. Threads may embed at once; they take turns, text
by text.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray

from llm_unlearn.errors import EnvironmentFailure
from llm_unlearn.models import reference as references


class SentenceEmbedder:
    """A sentence-transformers model as the store's `Embedder`: unit rows of float32."""

    def __init__(self, reference: str) -> None:
        from sentence_transformers import SentenceTransformer

        folder = references.resolve(reference)
        try:
            self._model = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EnvironmentFailure(
                f"Embedder {reference!r} cannot be loaded: {first}",
                "It must be a sentence-transformers folder with safetensors weights.",
            ) from error
        self._model.eval()
        self.reference = reference
        self.digest = references.digest(Path(folder))
        width = self._model.get_embedding_dimension()
        if width is None:
            raise EnvironmentFailure(
                f"Embedder {reference!r} does not say how wide its vectors are."
            )
        self.dim: int = width
        self._turn = threading.Lock()

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The fast tokenizer, for counting tokens when cutting chunks (a copy without truncation)."""
        backend: tokenizers.Tokenizer = self._model.tokenizer.backend_tokenizer
        copy = tokenizers.Tokenizer.from_str(backend.to_str())
        copy.no_truncation()
        copy.no_padding()
        return copy

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed each text alone.

        Returns:
            (n, dim) float32, each row of Euclidean length 1.
        """
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            with self._turn:
                row = self._model.encode(
                    [text], batch_size=1, convert_to_numpy=True, show_progress_bar=False
                )[0].astype(np.float32)
            norm = float(np.linalg.norm(row.astype(np.float64)))
            rows[i] = row / np.float32(norm) if norm > 0 else row
        return rows


def batch_encoder(
    reference: str,
) -> tuple[int, Callable[[Sequence[str]], NDArray[np.float32]]]:
    """The length of a vector, and a function that embeds many texts at once in bfloat16.

    Several times faster than `SentenceEmbedder`, and its bits depend on a text's neighbours: for
    measuring only, never for a store.
    """
    embedder = SentenceEmbedder(reference)
    model = embedder._model.bfloat16()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        found = model.encode(
            list(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
        )
        wide = found.float().numpy().astype(np.float64)
        return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)

    return embedder.dim, encode
