"""A real cross-encoder, tiny and random, against transformers itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from llm_unlearn.errors import EnvironmentFailure
from llm_unlearn.models.reranker import CrossEncoderReranker

TEXTS = ["A heron.", "The tide was late, and the heron did not move.", "Rope."]


def tiny_cross_encoder(folder: Path, labels: int = 1) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 128
    tokenizer.chat_template = None  # with one, pairs would be put to it as a conversation
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_scores_are_those_of_the_model_and_know_no_neighbours(tmp_path: Path) -> None:
    folder = tiny_cross_encoder(tmp_path / "one")
    reranker = CrossEncoderReranker(folder)
    scores = reranker.score("the heron", TEXTS)
    assert scores == [reranker.score("the heron", [text])[0] for text in TEXTS]
    assert len(set(scores)) == 3
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        for text, score in zip(TEXTS, scores, strict=True):
            logit = model(**tokenizer("the heron", text, return_tensors="pt")).logits.item()
            # one output is given as a probability
            assert score == pytest.approx(torch.sigmoid(torch.tensor(logit)).item(), abs=1e-5)


def test_what_cannot_rerank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="3 outputs"):
        CrossEncoderReranker(tiny_cross_encoder(tmp_path / "three", labels=3))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(EnvironmentFailure):
        CrossEncoderReranker(str(tmp_path / "broken"))
