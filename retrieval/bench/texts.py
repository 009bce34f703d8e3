"""Real texts to measure with, and their vectors in a cache that an interruption does not lose.

Guarantees: the same files give the same texts in the same order, each once. The cache holds vectors
of exactly these texts or is begun anew. The vectors are for measuring only: they are made in mixed
batches, so their bits are not the store's, and the cache is not encrypted; do not point it at texts
that anybody may demand back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.retrieval.embedding import Floats

Encode = Callable[[Sequence[str]], Floats]

_KINDS = {".txt", ".md", ".json", ".jsonl"}
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+")
_BATCH = 64  # texts embedded at once
_KEEP = 64  # batches between two writes of the cache
_LETTERS = 3  # a text with fewer says nothing to search by


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Every distinct sentence of prose and string of JSON in files and folders, as they appear.

    Args:
        paths: `.txt`, `.md`, `.json` and `.jsonl` files, or folders searched for them.

    Raises:
        NotFound: a path does not exist.
        InputError: nothing to read.
    """
    found: dict[str, None] = {}
    for path in _files(paths):
        for text in _texts(path):
            text = " ".join(text.split())
            if sum(map(str.isalpha, text)) >= _LETTERS:
                found.setdefault(text)
    if not found:
        names = ", ".join(map(str, paths))
        raise InputError(f"no text in {names}.", f"Give files that end in {sorted(_KINDS)}.")
    return list(found)


def embed_texts(
    texts: Sequence[str],
    encode: Encode,
    dim: int,
    cache: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:
    """Unit vectors of texts, (n, dim) float32; done batches are read from the cache.

    Args:
        texts: what to embed.
        encode: texts to unit rows; called with texts of about the same length.
        dim: length of a vector.
        cache: a `.npy` file; beside it `.done` says how far it is and of which texts.
        progress: told how many of how many are done.
    """
    digest = hashlib.sha256("\0".join([str(dim), *texts]).encode()).hexdigest()
    mark = cache.with_suffix(".done")
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    done = 0
    if mark.exists() and cache.exists():
        found = json.loads(mark.read_text())
        done = found["done"] if found["texts"] == digest else 0
    shape = (len(texts), dim)
    mode = "r+" if done else "w+"
    vectors = np.lib.format.open_memmap(cache, mode, np.float32, None if done else shape)
    progress(done, len(texts))
    for start in range(done, len(texts), _BATCH * _KEEP):
        for first in range(start, min(start + _BATCH * _KEEP, len(texts)), _BATCH):
            chosen = order[first : first + _BATCH]
            vectors[chosen] = encode([texts[i] for i in chosen])
            progress(first + len(chosen), len(texts))
        vectors.flush()
        done = min(start + _BATCH * _KEEP, len(texts))
        mark.write_text(json.dumps({"texts": digest, "done": done}))
    return np.array(vectors)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise NotFound(f"{path} does not exist.", "Give files or folders of text.")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (p for p in inside if p.is_file() and p.suffix in _KINDS)


def _texts(path: Path) -> Iterator[str]:
    whole = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix in {".json", ".jsonl"}:
        yield from _strings(whole)
    else:
        for paragraph in re.split(r"\n\s*\n", whole):
            yield from _SENTENCE.split(paragraph)


def _strings(whole: str) -> Iterator[str]:
    """Every string value of a JSON file or of JSON lines; a line that is no JSON is itself one."""
    try:
        yield from _walk(json.loads(whole))
        return
    except ValueError:
        pass
    for line in whole.splitlines():
        try:
            yield from _walk(json.loads(line))
        except ValueError:
            yield line


def _walk(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
