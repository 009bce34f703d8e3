"""From a model reference to a directory of files with a digest.

A reference is a local path, a hub id, or `packaged:NAME` (a model that comes as a Python package, so
that no model hub is needed).

Guarantees: only safetensors weights are accepted, never pickled ones; no code that comes with a
model is ever run; the digest covers every byte that decides what the model computes. It does not
say that the files are good, only which files they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from llm_unlearn.errors import EnvironmentFailure

_WEIGHTS = "*.safetensors"
_DECIDING = (_WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model")
_IGNORED = {"data_config.json", "README.txt"}


def resolve(reference: str) -> Path:
    """The directory that holds the model's files.

    Raises:
        EnvironmentFailure: no such model, pickled weights only, or a model that needs its own code.
    """
    if reference.startswith("packaged:"):
        from llm_unlearn.models import packaged

        return packaged.unpack(reference.removeprefix("packaged:"))
    path = Path(reference).expanduser()
    if not path.is_dir():
        path = _from_hub(reference)
    if not list(path.rglob(_WEIGHTS)):
        pickled = [*path.rglob("*.bin"), *path.rglob("*.pt")]
        if pickled:
            raise EnvironmentFailure(
                f"Model {reference!r} has only pickled weights ({pickled[0].name}), which can run code.",
                "Convert them to safetensors, or choose a model that has them.",
            )
        raise EnvironmentFailure(
            f"Model {reference!r} has no safetensors weights in {path}.",
            "Point at a folder written by save_pretrained.",
        )
    for config in path.rglob("config.json"):
        if "auto_map" in json.loads(config.read_text(encoding="utf-8")):
            raise EnvironmentFailure(
                f"Model {reference!r} needs code of its own (auto_map in config.json), which is never run.",
                "Choose an architecture that transformers has built in.",
            )
    return path


def _from_hub(reference: str) -> Path:
    looks_local = reference.startswith((".", "/", "~")) or reference.count("/") != 1
    if looks_local:
        raise EnvironmentFailure(
            f"Model {reference!r} does not exist.",
            "Give a folder, a hub id such as owner/name, or packaged:smollm2-135m-instruct.",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(reference, allow_patterns=list(_DECIDING)))
    except (OSError, ValueError, RuntimeError) as error:
        # huggingface_hub wraps network, permission and name errors in subclasses of these
        raise EnvironmentFailure(
            f"Model {reference!r} is neither a folder nor to be had from the hub "
            f"({type(error).__name__}).",
            "Check the name and the network, or use packaged:smollm2-135m-instruct.",
        ) from error


def digest(directory: Path) -> str:
    """SHA-256 (hex) over the sorted names and contents of all files that decide the bits."""
    total = hashlib.sha256()
    files = {
        file
        for pattern in _DECIDING
        for file in directory.rglob(pattern)
        if file.name not in _IGNORED
    }
    for file in sorted(files, key=lambda f: f.relative_to(directory).as_posix()):
        with file.open("rb") as stream:
            part = hashlib.file_digest(stream, "sha256")
        total.update(file.relative_to(directory).as_posix().encode() + b"\0" + part.digest())
    return total.hexdigest()
