"""Texts, noise and planted files that the scans of these tests look through."""

from __future__ import annotations

import random
from pathlib import Path

TEXT = (
    "Ilse Marant tuned the glass harp of Varn for nineteen winters;\n\n the “Überfahrt” and "
    'her\tlittle dog "Ø" crossed the Bay of Quill in 1911, and Зоя wrote 𝄞 beside 雪国の長い.'
)
IDS = random.Random(3).choices(range(40_000), k=40)


def noise(n: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(n)


def planted(folder: Path, data: bytes, before: int = 1001, after: int = 777) -> Path:
    path = folder / "file"
    path.write_bytes(noise(before) + data + noise(after, 1))
    return path
