"""Does quantizing the weights bring forgotten text back (Zhang et al. 2025)?

Guarantees: weights are rounded to what 8 or 4 bits can hold and put back, bit for bit, afterwards;
the same on every machine. It is round-to-nearest with absolute-maximum scaling, in groups along the
input; it does not calibrate on data (GPTQ, AWQ), nor use NF4, and computes in the model's own
dtype, so it shows what rounding does, not how fast a kernel is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from llm_unlearn.errors import InputError

Bits = Literal[8, 4]


def round_weight(weight: torch.Tensor, bits: Bits, group: int | None) -> torch.Tensor:
    """Round a weight (out, in) to signed integers times one scale a group of inputs.

    scale = max |w| / (2^(bits-1) - 1) over the group; each weight becomes its nearest multiple
    (ties to even). `group` None: one scale for each whole row.

    Row 7, -3.4, 0.6 at 4 bits: scale 7/7 = 1, so 7, -3, 1.
    """
    rows, width = weight.shape
    size = width if group is None else group
    if width % size:
        raise InputError(f"{width} inputs do not divide into groups of {size}.", "Choose another.")
    parts = weight.float().reshape(rows, width // size, size)
    scale = parts.abs().amax(dim=2, keepdim=True) / (2 ** (bits - 1) - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((parts / scale).round() * scale).reshape(rows, width).to(weight.dtype)


@contextmanager
def quantized(model: Any, bits: Bits) -> Iterator[Any]:
    """Inside the block the model's linear layers hold 8-bit (by row) or 4-bit (by 64) weights.

    As usual for language models, embeddings and the output head stay as they are, and so do LoRA
    matrices, which are kept apart from the quantized base. Widths that 64 does not divide use one
    scale a row.

    Raises:
        InputError: bits other than 8 or 4, or no linear layer to quantize.
    """
    if bits not in (8, 4):
        raise InputError(f"{bits} bits.", "Choose 8 or 4.")
    head = model.get_output_embeddings()
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head and "lora_" not in name
    ]
    conv = [m for m in model.modules() if type(m).__name__ == "Conv1D"]  # GPT-2: (in, out)
    if not layers and not conv:
        raise InputError("the model has no linear layers.", "Nothing could be quantized.")
    saved = [(m, m.weight.detach().clone()) for m in (*layers, *conv)]
    try:
        with torch.no_grad():
            for module, weight in saved:
                turned = weight if isinstance(module, torch.nn.Linear) else weight.T
                group = 64 if bits == 4 and turned.shape[1] % 64 == 0 else None
                made = round_weight(turned, bits, group)
                module.weight.copy_(made if turned is weight else made.T)
        yield model
    finally:
        with torch.no_grad():
            for module, weight in saved:
                module.weight.copy_(weight)
