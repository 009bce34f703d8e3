"""LLM unlearning and retrieval separation: text that can be taken back, with proof."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_unlearn.config import Config
    from llm_unlearn.documents import Document, Message
    from llm_unlearn.errors import UnlearnError
    from llm_unlearn.workspace import Workspace

# in a checkout `retrieval` and `eval` lie beside this folder, and Python started there finds it first
_beside = Path(__path__[0]).parent
if not Path(__path__[0], "retrieval").is_dir() and (_beside / "retrieval" / "vault.py").is_file():
    __path__.append(str(_beside))

__all__ = ["Config", "Document", "Message", "UnlearnError", "Workspace"]

_HOMES = {
    "Config": "config",
    "Document": "documents",
    "Message": "documents",
    "UnlearnError": "errors",
    "Workspace": "workspace",
}


def __getattr__(name: str) -> Any:
    # public names load on first use, so that `llm-unlearn --help` imports no model library
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
