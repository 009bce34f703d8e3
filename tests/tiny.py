"""Tiny random models on disk: as real as any model to the code, and quick.

A byte-level tokenizer (one token a byte, with a chat template), causal LMs of three architectures and
a sentence-transformers embedder, all written as safetensors folders from fixed seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

Kind = Literal["llama", "gpt2", "qwen"]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|pad|>", "<|start|>", "<|end|>", "[CLS]", "[SEP]")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, five special tokens; `<|end|>` ends a turn and pads, as in SmolLM2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(folder: Path, kind: Kind = "llama", *, layers: int = 4, seed: int = 0) -> str:
    """Write a random causal LM and its tokenizer; returns the folder as a model reference."""
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    end = tokenizer.eos_token_id
    torch.manual_seed(seed)
    shared = {"vocab_size": size, "bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    model: torch.nn.Module
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(n_layer=layers, n_head=2, n_embd=32, n_positions=2048, **shared)
        )
    else:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
        }
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**sizes, **shared, tie_word_embeddings=True))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**sizes, **shared))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_embedder(folder: Path, *, seed: int = 1) -> str:
    """Write a random sentence-transformers model (mean-pooled BERT over bytes, 32 numbers)."""
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 256
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 256, "do_lower_case": False})
    )
    pooling = folder / "1_Pooling"
    pooling.mkdir(exist_ok=True)
    (pooling / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    modules = [
        ("0", "", "sentence_transformers.models.Transformer"),
        ("1", "1_Pooling", "sentence_transformers.models.Pooling"),
    ]
    (folder / "modules.json").write_text(
        json.dumps([{"idx": int(n), "name": n, "path": p, "type": t} for n, p, t in modules])
    )
    return str(folder)
