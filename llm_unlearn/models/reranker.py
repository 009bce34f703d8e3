"""Cross-encoders as the store's `Reranker`, in shapes that the pair alone fixes.

Guarantees: the score of a text depends on it, the question, the model and the pinned thread count
only: each pair runs in a batch of its own. Costs one forward pass a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llm_unlearn.errors import EnvironmentFailure
from llm_unlearn.models import reference as references


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder with one output.

    Args:
        reference: a local directory or a hub id, with safetensors weights.

    Raises:
        EnvironmentFailure: it cannot be loaded, or has several outputs.
    """

    def __init__(self, reference: str) -> None:
        from sentence_transformers import CrossEncoder

        folder = references.resolve(reference)
        try:
            self._model = CrossEncoder(
                str(folder), device="cpu", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EnvironmentFailure(
                f"Reranker {reference!r} cannot be loaded: {first}",
                "It must be a cross-encoder's folder with safetensors weights.",
            ) from error
        if self._model.num_labels != 1:
            raise EnvironmentFailure(
                f"Reranker {reference!r} has {self._model.num_labels} outputs.",
                "Choose one that returns a single score.",
            )

    @torch.inference_mode()
    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """The model's score of each text, higher for better."""
        return [
            float(self._model.predict([(query, text)], batch_size=1, show_progress_bar=False)[0])
            for text in texts
        ]
