"""Memory that is freed leaves the process, also beneath what is still held."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from llm_unlearn.serve.memory import give_back


def test_free_pages_beneath_held_ones_go_back() -> None:
    """3,000 blocks of 64 KiB, too small for maps of their own; every hundredth is kept."""
    process = psutil.Process()
    blocks = [os.urandom(1 << 16) for _ in range(3000)]
    kept = blocks[::100]
    del blocks
    before = process.memory_info().rss
    give_back()
    assert process.memory_info().rss < before - (100 << 20)
    assert len(kept) == 30


def test_what_the_environment_says_stands() -> None:
    code = (
        "import os; from llm_unlearn.serve.memory import bound; bound();"
        "print(os.environ['LRU_CACHE_CAPACITY'], os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    )
    clean = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")}
    clean["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    for given, held in (({}, "16 128"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}, "16 7")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean | given, capture_output=True, check=True
        )
        assert done.stdout.decode().split() == held.split()
