"""The store: text that can be taken back, encrypted, searchable, exactly deletable.

Usable alone: `Store.create(path, keys, embedder)`, then `add`, `search`, `delete`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_unlearn.retrieval.embedding import Embedder
    from llm_unlearn.retrieval.keyring import Keyring
    from llm_unlearn.retrieval.settings import StoreSettings
    from llm_unlearn.retrieval.store import Hit, Store
    from llm_unlearn.retrieval.where import Where

__all__ = ["Embedder", "Hit", "Keyring", "Store", "StoreSettings", "Where"]

_HOMES = {
    "Embedder": "embedding",
    "Hit": "store",
    "Keyring": "keyring",
    "Store": "store",
    "StoreSettings": "settings",
    "Where": "where",
}


def __getattr__(name: str) -> Any:
    # loaded on first use: the config needs the settings, and neither NumPy nor FAISS
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
