"""The rest of our store's life: opening, memory, rotation.

Guarantees: opening is measured in a new process, whose peak of memory is that of one user with one
index. It does not empty the operating system's cache of files.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from llm_unlearn.retrieval.bench.peers import Given, Ours
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.retrieval.store import Store

_KEYS = 100_000  # documents whose keys are wrapped anew


@dataclass(frozen=True)
class Life:
    """Seconds and mebibytes."""

    open: float  # to the first answer
    memory: float  # at its peak, of a process that opened the store and asked once
    rotate: float  # of the keys of 100,000 documents


def measure(ours: Ours) -> Life:
    """Close the store, open it in a process of its own, and rotate a keyring of 100,000 keys."""
    dim = ours.store.embedder.dim
    ours.close()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        seconds, memory = pool.submit(_open, ours.folder, dim).result()
    return Life(seconds, memory, _rotate())


def _open(folder: Path, dim: int) -> tuple[float, float]:
    faiss.omp_set_num_threads(1)
    query = np.full(dim, 1.0, np.float32)
    start = time.perf_counter()
    with Store.open(folder / "store", folder / "keys", Given(dim)) as store:
        store.search_vector(query, groups=["staff"])
        seconds = time.perf_counter() - start
    return seconds, _peak()


def _peak() -> float:
    """The most memory this program has held, in MiB.

    What `getrusage` tells on Linux includes what the parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _rotate() -> float:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Keyring.create(Path(folder) / "keys")) as keyring,
    ):
        keyring.new_keys(_KEYS)
        start = time.perf_counter()
        keyring.rotate()
        return time.perf_counter() - start
