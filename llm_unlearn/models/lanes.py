"""Rows that decode together and come and go between steps: continuous batching over one model.

A lane is one batch with one cache. `join` reads new prompts in a pass of their own and puts their
keys and values beside those of the rows that are already decoding; `step` adds one token to every
row; `keep` lets rows go. Rows are padded on the left: each row counts its positions from its own first
token, and what stands before it is masked, so neighbours decide no logits but for float noise.

Guarantees: the logits of a row are those of its prompt and tokens read alone, to float noise (tested
on three architectures); what a row that left had in the cache is out of memory after `keep`; the model
is as before between calls. It does not share the keys of common beginnings, nor read a long prompt in
pieces: a join makes the others wait for one pass. Where a cache keeps only a window, rows cannot be
put side by side: `joinable` says so, and a lane then fills only while it is empty.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from llm_unlearn.models.experts import Mixture, mixing
from llm_unlearn.models.lora import AdapterHost


class Lane:
    """One batch of rows that all carry the same number of adapters.

    Args:
        copies: adapters a row, 0 for the base model alone. With several a row's next token comes from
            their mixture.
    """

    def __init__(self, host: AdapterHost, copies: int = 0) -> None:
        self._host = host
        self._copies = max(1, copies)
        self._mixed = copies > 0
        self._cache: Any = None
        self._attention = torch.zeros((0, 0), dtype=torch.long, device=host.base.device)
        names = inspect.signature(host.base.model.forward).parameters
        self._positions = "position_ids" in names
        self._keeps = "logits_to_keep" in names

    def __len__(self) -> int:
        """Rows that are decoding."""
        return len(self._attention)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self._attention.shape[1]

    @property
    def joinable(self) -> bool:
        """Whether rows can join now."""
        return not len(self) or not any(layer.is_sliding for layer in self._cache.layers)

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]], mixture: Mixture | None = None) -> Tensor:
        """Read prompts, none empty, and append them as rows.

        Args:
            mixture: the adapters of these rows alone; None for the base model.

        Returns:
            (new rows, V) float32: logits of their first tokens, or log-probabilities of a mixture.
        """
        pad = self._host.base.tokenizer.pad_token_id
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad, dtype=torch.long)
        attention = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            attention[row, width - len(prompt) :] = 1
        device = self._host.base.device
        ids, attention = ids.to(device), attention.to(device)
        cache = DynamicCache(config=self._host.base.model.config)
        logits = self._forward(ids, attention, cache, mixture)
        if not len(self):
            self._cache, self._attention = cache, attention
            return logits
        old, new = len(self), len(prompts)
        longest = max(self.width, width)
        for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
            # layers below the first adapted one have a row a prompt, the others one for each adapter
            copies = len(mine.keys) // old
            mine.keys = _beside(mine.keys, theirs.keys, copies, longest)
            mine.values = _beside(mine.values, theirs.values, copies, longest)
        self._attention = torch.cat(
            [_widened(self._attention, longest), _widened(attention, longest)]
        )
        assert len(self) == old + new
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], mixture: Mixture | None = None) -> Tensor:
        """Append one token to every row; what `join` returns, for all rows."""
        ids = torch.tensor(list(tokens), device=self._attention.device)[:, None]
        more = self._attention.new_ones(len(self), 1)
        attention = torch.cat([self._attention, more], dim=1)
        logits = self._forward(ids, attention, self._cache, mixture)
        self._attention = attention
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows go, and the columns that only they needed."""
        if len(rows) == len(self):
            return
        if not rows:
            self._cache = None
            self._attention = self._attention.new_zeros((0, 0))
            return
        before = len(self)
        kept = torch.tensor(list(rows), device=self._attention.device)
        self._attention = self._attention[kept]
        first = int(
            self._attention.argmax(dim=1).min()
        )  # columns before it are padding in every row
        self._attention = self._attention[:, first:].contiguous()
        for layer in self._cache.layers:
            copies = len(layer.keys) // before
            wide = (kept + before * torch.arange(copies, device=kept.device)[:, None]).reshape(-1)
            cut = 0 if layer.is_sliding else first
            layer.keys = layer.keys[wide][:, :, cut:].contiguous()
            layer.values = layer.values[wide][:, :, cut:].contiguous()

    def _forward(
        self, ids: Tensor, attention: Tensor, cache: Any, mixture: Mixture | None
    ) -> Tensor:
        assert self._mixed == (mixture is not None)
        if mixture is not None:
            with mixing(self._host, mixture.stacked) as mixed:
                mixed.arrange(torch.from_numpy(mixture.slots))
                logits = mixed.forward(ids, attention, cache, keep=1)[:, -1].float()  # (K B, V)
            if self._copies == 1:
                return logits
            each = torch.log_softmax(logits, -1).view(self._copies, len(ids), -1)
            weights = torch.from_numpy(mixture.weights).float().to(each.device)
            return mixture.combine(each, weights)
        positions = (attention.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        extra: dict[str, Any] = {"position_ids": positions} if self._positions else {}
        if self._keeps:
            extra["logits_to_keep"] = 1
        with self._host.using(None):
            out = self._host.base.model(
                input_ids=ids,
                attention_mask=attention,
                past_key_values=cache,
                use_cache=True,
                **extra,
            )
        plain: Tensor = out.logits[:, -1].float()
        return plain


def _widened(attention: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(attention, (width - attention.shape[1], 0))


def _beside(mine: Tensor, theirs: Tensor, copies: int, width: int) -> Tensor:
    """Rows (copies x old) and (copies x new) as (copies x (old + new)), padded on the left to `width`."""
    parts = []
    for tensor in (mine, theirs):
        wide = torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[2], 0))
        parts.append(wide.view(copies, -1, *wide.shape[1:]))
    joined = torch.cat(parts, dim=1)
    return joined.reshape(-1, *joined.shape[2:])
