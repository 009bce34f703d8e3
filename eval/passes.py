"""One teacher-forced forward pass a text, shared by every memorization and membership probe.

Guarantees: padding is masked by length, never by token id, so a pad token equal to the end token
masks nothing real; the last token of a text is scored; logits are reduced batch by batch and never
kept. Which tokens are scored is `encoding`'s.

It does not guarantee the same bits for another batch size: right padding cannot reach a real token
of a causal model, but matrix products of other shapes round differently, so values agree to float
noise only (about 1e-6 in float32, 1e-2 in bfloat16). Texts longer than the context are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.eval.encoding import Encoded

_ROWS = 256  # rows of logits reduced at a time: bounds the float32 temporaries beside them


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a next token is drawn: `temperature` first, then the `top_k` likeliest (None = all).

    Raises:
        InputError: a temperature that is not above 0, a `top_k` below 1.
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(
                f"temperature {self.temperature} is not above 0.", "For greedy, use `hit`."
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k} is below 1.", "Give None to keep all tokens.")


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What one pass says of each target token of one text; every array has one entry a target.

    Attributes:
        positions: int64, index of the target in the ids.
        ids: int64, the target itself.
        logp: float32, natural log-probability of the target given all tokens before it.
        hit: bool, whether greedy decoding would choose the target (ties go as in `torch.argmax`).
        rank: int64, number of tokens with a strictly larger logit; 0 is the top.
        mean: float32, expectation of log p(z) for z drawn from the model at that position, that is
            minus the entropy in nats (the mu of Min-K%++).
        std: float32, standard deviation of log p(z) under the same distribution.
        sampled: float32 (schemes, targets), log-probability of the target under each `Sampling`;
            -inf where the scheme can never draw it.
    """

    positions: NDArray[np.int64]
    ids: NDArray[np.int64]
    logp: NDArray[np.float32]
    hit: NDArray[np.bool_]
    rank: NDArray[np.int64]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    sampled: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logp)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off inside the block and leave the model as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def check_inputs(
    model: Any, input_ids: Sequence[Sequence[int]], loss_mask: Sequence[Sequence[bool]]
) -> int:
    """Refuse what would be scored wrongly; returns the model's vocabulary size.

    Raises:
        InputError: lengths differ, a first token is masked in, an id is outside the vocabulary, a
            text is empty or longer than the model's context.
    """
    if len(input_ids) != len(loss_mask):
        raise InputError(
            f"{len(input_ids)} texts but {len(loss_mask)} masks.", "Give one mask a text."
        )
    config = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    limit = getattr(config, "max_position_embeddings", None)
    for i, (ids, mask) in enumerate(zip(input_ids, loss_mask, strict=True)):
        if len(ids) != len(mask):
            raise InputError(
                f"text {i} has {len(ids)} ids but {len(mask)} mask entries.", "Give one a token."
            )
        if not ids:
            raise InputError(f"text {i} has no tokens.", "Leave empty texts out.")
        if mask[0]:
            raise InputError(
                f"text {i} asks for its first token, which nothing comes before.",
                "Put a start token before it, or set mask[0] to False.",
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise InputError(
                f"text {i} holds a token id outside 0..{vocabulary - 1}.",
                "Encode it with the model's own tokenizer.",
            )
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"text {i} has {len(ids)} tokens, the model's context {limit}.",
                "Cut it into windows first.",
            )
    return vocabulary


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _batches(lengths: Sequence[int], batch_size: int, rows: int) -> Iterator[list[int]]:
    """Indices by falling length: at most `batch_size` texts, and `rows` tokens with padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_tokens(
    model: Any,
    input_ids: Sequence[Sequence[int]],
    loss_mask: Sequence[Sequence[bool]],
    batch_size: int = 8,
    *,
    sampling: Sequence[Sampling] = (),
    logits_budget: int = 1 << 26,
) -> list[TokenScores]:
    """Score every masked token of every text, one forward pass a text.

    Texts that differ in nothing before their last target share one: the letters after one question.

    Args:
        model: any Hugging Face causal language model, or a PEFT model around one.
        input_ids: token ids of each text, unpadded.
        loss_mask: for each, which tokens are targets; a mask with none is allowed.
        batch_size: most texts a batch; those that share a pass count as one.
        sampling: further ways of drawing under which the targets are scored in the same pass.
        logits_budget: most logits (float32 numbers) held at once, unless one text alone needs more.

    Returns:
        One `TokenScores` a text, in the order given.

    Raises:
        InputError: see `check_inputs`; or a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is below 1.", "Give 1 or more.")
    vocabulary = check_inputs(model, input_ids, loss_mask)
    targets = [np.flatnonzero(np.asarray(m, dtype=bool)).astype(np.int64) for m in loss_mask]
    device = next(model.parameters()).device
    keeps = _keeps_logits(model)
    results: dict[int, TokenScores] = {}
    alike: dict[tuple[int, ...], list[int]] = {}  # texts that differ after all that is read
    for i, (text, places) in enumerate(zip(input_ids, targets, strict=True)):
        alike.setdefault(tuple(text[: places[-1]]) if len(places) else (), []).append(i)
    groups = list(alike.values())
    rows = [input_ids[group[0]] for group in groups]
    budget = max(1, logits_budget // vocabulary)
    with evaluating(model), torch.inference_mode():
        for batch in _batches([len(row) for row in rows], batch_size, budget):
            longest = max(len(rows[g]) for g in batch)
            ids = torch.zeros((len(batch), longest), dtype=torch.long)
            attention = torch.zeros((len(batch), longest), dtype=torch.long)
            for place, g in enumerate(batch):
                ids[place, : len(rows[g])] = torch.tensor(list(rows[g]))
                attention[place, : len(rows[g])] = 1
            # The logits at position p - 1 speak of the token at p.
            wanted = np.unique(np.concatenate([targets[i] - 1 for g in batch for i in groups[g]]))
            logits = torch.zeros((len(batch), 0, vocabulary))
            if len(wanted):
                extra = {"logits_to_keep": torch.from_numpy(wanted).to(device)} if keeps else {}
                logits = model(
                    input_ids=ids.to(device),
                    attention_mask=attention.to(device),
                    use_cache=False,
                    **extra,
                ).logits  # (batch, wanted or longest, vocabulary)
            for place, i in ((place, i) for place, g in enumerate(batch) for i in groups[g]):
                where = np.searchsorted(wanted, targets[i] - 1) if keeps else targets[i] - 1
                chosen = torch.tensor(list(input_ids[i]))[torch.from_numpy(targets[i])]
                results[i] = _reduce(logits[place], where, chosen, targets[i], sampling)
            del logits
    return [results[i] for i in range(len(input_ids))]


def score_encoded(
    model: Any,
    encoded: Sequence[Encoded],
    batch_size: int = 8,
    *,
    sampling: Sequence[Sampling] = (),
) -> list[TokenScores]:
    """`score_tokens` on what `encoding.encode_pairs`, `encode_texts` or `encode_chats` return."""
    ids, masks = [e.ids for e in encoded], [e.mask for e in encoded]
    return score_tokens(model, ids, masks, batch_size, sampling=sampling)


def _reduce(
    logits: torch.Tensor,  # (positions, vocabulary)
    where: NDArray[np.int64],
    chosen: torch.Tensor,  # (targets,)
    positions: NDArray[np.int64],
    sampling: Sequence[Sampling],
) -> TokenScores:
    """Turn the logits of one text into one number a target, `_ROWS` rows at a time."""
    n = len(where)
    logp, mean, std = (np.empty(n, np.float32) for _ in range(3))
    hit = np.empty(n, bool)
    rank = np.empty(n, np.int64)
    sampled = np.empty((len(sampling), n), np.float32)
    for start in range(0, n, _ROWS):
        part = slice(start, min(n, start + _ROWS))
        index = torch.from_numpy(where[part]).to(logits.device)
        raw = logits.index_select(0, index).float()  # (rows, vocabulary)
        target = chosen[part].to(logits.device)[:, None]  # (rows, 1)
        own = raw.gather(1, target)  # (rows, 1)
        rank[part] = (raw > own).sum(1).cpu().numpy()
        hit[part] = (raw.argmax(1) == target[:, 0]).cpu().numpy()
        for s, scheme in enumerate(sampling):
            sampled[s, part] = _drawn(raw, own, scheme).cpu().numpy()
        log_all = torch.log_softmax(raw, dim=1)
        logp[part] = log_all.gather(1, target)[:, 0].cpu().numpy()
        weights = log_all.exp()
        mu = torch.nan_to_num(weights * log_all, nan=0.0).sum(1)
        spread = torch.nan_to_num(weights * (log_all - mu[:, None]).square(), nan=0.0).sum(1)
        mean[part] = mu.cpu().numpy()
        std[part] = spread.sqrt().cpu().numpy()
    return TokenScores(
        positions, chosen.cpu().numpy().astype(np.int64), logp, hit, rank, mean, std, sampled
    )


def _drawn(raw: torch.Tensor, own: torch.Tensor, scheme: Sampling) -> torch.Tensor:
    """Log-probability (rows,) of the target logit `own` (rows, 1) when drawn by `scheme`."""
    scaled, mine = raw / scheme.temperature, own[:, 0] / scheme.temperature
    if scheme.top_k is None or scheme.top_k >= raw.shape[1]:
        return mine - scaled.logsumexp(1)
    # As in transformers, every token tied with the k-th is kept.
    least = scaled.topk(scheme.top_k, dim=1).values[:, -1]
    total = scaled.masked_fill(scaled < least[:, None], -torch.inf).logsumexp(1)
    return torch.where(mine >= least, mine - total, torch.full_like(mine, -torch.inf))
