"""Tiny models with random weights and tokenizers built on the spot: nothing is downloaded."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tiny import byte_tokenizer
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

__all__ = [
    "bpe_tokenizer",
    "byte_tokenizer",
    "gpt2",
    "llama",
    "memorize",
    "metaspace_tokenizer",
    "qwen2",
]
SIZE = 261  # of the byte tokenizer

torch.set_num_threads(1)

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_LINES = [
    "the cat sat on the mat",
    "the answer is Paris and the cat",
    "a question of the answer",
] * 9


@cache
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges across the blank before a word, as GPT-2's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], initial_alphabet=_ALPHABET, show_progress=False
    )
    inner.train_from_iterator(_LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


@cache
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Sentencepiece-like, with a start token put before each text, as Llama's."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyzPARIS"),
        show_progress=False,
    )
    inner.train_from_iterator(_LINES, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama(vocabulary: int = SIZE, seed: int = 0, context: int = 256, scale: float = 0.4) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=scale,
        )
    )


def gpt2(vocabulary: int = SIZE, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            initializer_range=0.4,
            bos_token_id=256,
            eos_token_id=256,
        )
    )


def qwen2(vocabulary: int = SIZE, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.4,
        )
    )


def memorize(model: Any, texts: list[list[int]], steps: int = 120) -> Any:
    """Train until the texts are known by heart (Adam, the whole model)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    model.train()
    for step in range(steps):
        ids = torch.tensor([texts[step % len(texts)]])
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
