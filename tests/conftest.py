"""Shared by all tests: tiny models are written once, models load once, threads are pinned."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# how long an example takes says how busy the machine is, not whether it holds
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell's background job ignores Ctrl-C and so would every command under test
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))  # `tiny` is shared by several test folders


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the checkout: its bare `llm_unlearn/` would shadow the package in child processes."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def tiny_references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the tiny models by kind: llama, gpt2, qwen, embedder."""
    from tiny import tiny_embedder, tiny_model

    folder = tmp_path_factory.mktemp("models")
    found = {
        "llama": tiny_model(folder / "llama", "llama"),
        "gpt2": tiny_model(folder / "gpt2", "gpt2"),
        "qwen": tiny_model(folder / "qwen", "qwen"),
    }
    found["embedder"] = tiny_embedder(folder / "embedder")
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests share two cores with each other; one thread each is the quickest for all."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
