"""What a server holds: memory that was freed goes back to the operating system.

Answers of all lengths come and go, each step with keys and values of another size. PyTorch and oneDNN
keep what they prepared for each of their last 1,024 shapes, and the C library most of what is freed in
between: a busy server grew by 800 MB in ten minutes (docs/LOG.md). Freed memory goes back where the C
library is glibc.
"""

from __future__ import annotations

import ctypes
import os

# shapes that PyTorch and oneDNN remember; with 32 of oneDNN's a retraining lost a sixth of its pace
_CAPACITY = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}


def bound() -> None:
    """Let few shapes be remembered, unless the environment says how many.

    Call it before torch is imported: it reads them once.
    """
    for name, most in _CAPACITY.items():
        os.environ.setdefault(name, most)


def give_back() -> None:
    """Hand free pages back; takes milliseconds."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
