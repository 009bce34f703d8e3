"""A causal language model with its tokenizer, ready to train adapters on, to score and to generate.

Guarantees: loaded from safetensors without remote code; deterministic kernels; evaluation mode and
frozen weights. Generation is greedy and batched, with left padding; a batch's composition can change
the last bits of a score, so compare runs that use the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llm_unlearn.errors import EnvironmentFailure, InputError
from llm_unlearn.models import attention
from llm_unlearn.models import reference as references

Dtype = Literal["float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
transformers_logging.disable_progress_bar()


@dataclass
class CausalModel:
    """A frozen base model; `model` may later be wrapped by adapters, `digest` names its files."""

    reference: str
    digest: str
    model: PreTrainedModel
    tokenizer: Any
    device: torch.device

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end an answer."""
        ids = self.model.generation_config.eos_token_id if self.model.generation_config else None
        found = {self.tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])}
        return sorted(i for i in found if i is not None)


def load_causal(reference: str, dtype: Dtype = "bfloat16") -> CausalModel:
    """Load a base model from a reference (see `models.reference`).

    Raises:
        EnvironmentFailure: the model does not exist or cannot be loaded safely.
    """
    from accelerate import PartialState

    folder = references.resolve(reference)
    device = PartialState().device
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentFailure(
            f"Model {reference!r} cannot be loaded: {first}",
            "It must be a causal LM that transformers has built in, with its tokenizer.",
        ) from error
    if tokenizer.pad_token_id is None:
        # any id serves: padding is masked by position, never by comparing ids
        tokenizer.pad_token_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    model.requires_grad_(False)
    model.eval()
    model.to(device)
    attention.use(model)
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_contiguous)
    return CausalModel(reference, references.digest(Path(folder)), model, tokenizer, device)


def _contiguous(
    _head: torch.nn.Module, given: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """The last states of a batch, cut out of it: as they are, torch copies the vocabulary for each row."""
    return (given[0].contiguous(), *given[1:])


@torch.inference_mode()
def generate(
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Greedy continuations, without their stop token.

    Args:
        prompts: token ids, one list a prompt, none empty.
        progress: called with the number of prompts finished after each batch.

    Returns:
        New token ids, one list a prompt, in the order of the prompts.

    Raises:
        InputError: a prompt is longer than the model can read.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    pad = model.tokenizer.pad_token_id
    stops = set(model.stop_ids)
    longest = max((len(prompt) for prompt in prompts), default=0)
    most = getattr(model.model.config, "max_position_embeddings", None)
    if most is not None and longest + max_new_tokens > most:
        raise InputError(
            f"The prompt has {longest} tokens; with {max_new_tokens} for the answer that is more "
            f"than the {most} that {model.reference} can read.",
            "Ask a shorter question, or retrieve fewer passages.",
        )
    # all of it stated here: what a model's own generation config says must not decide answers
    plain = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=model.stop_ids or None,
    )
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), pad, dtype=torch.long)  # (B, T)
        mask = torch.zeros((len(chosen), width), dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[row, width - len(prompts[i]) :] = 1
        out = model.model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=plain,
        )
        for row, i in enumerate(chosen):
            for token in out[row, width:].tolist():
                if token in stops:
                    break
                answers[i].append(token)
        if progress is not None:
            progress(min(start + batch_size, len(order)))
    return answers
