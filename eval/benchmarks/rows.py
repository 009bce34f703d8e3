"""Read the rows of a published benchmark file: JSON lines, one JSON array, or parquet; by path or hub id.

Guarantees: a file by path never touches the network; a hub file is looked for in the local cache
first, and only the one file named is fetched. No code of a data set is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llm_unlearn.errors import EnvironmentFailure, InputError, NotFound

_HUB = re.compile(r"([\w.-]+/[\w.-]+):([\w./-]+)")


def published(source: Path | str) -> Path:
    """The file of a path, or of a hub file written as `OWNER/NAME:PATH` (a data set's file).

    `locuslab/TOFU:forget10.json` is the file forget10.json of that data set, from the cache of
    huggingface_hub or fetched into it; with HF_HUB_OFFLINE=1 from the cache alone.

    Raises:
        NotFound: neither a file nor such a hub file.
        EnvironmentFailure: the hub cannot be reached, or offline mode and the file is not cached.
    """
    if Path(source).is_file():
        return Path(source)
    found = _HUB.fullmatch(str(source))
    if not found:
        raise NotFound(
            f"{source} does not exist.",
            "Give the path of a published benchmark file, or a hub file: OWNER/NAME:PATH.",
        )
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    name, inside = found.groups()
    cached = try_to_load_from_cache(name, inside, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(hf_hub_download(name, inside, repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise EnvironmentFailure(
            f"{source} is not in the local cache, and the hub was not reached.",
            "Go online once, unset HF_HUB_OFFLINE, or give the file's path.",
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise NotFound(f"{source} is not on the hub.", "Look at the data set's files.") from error
    except (HfHubHTTPError, OSError) as error:
        raise EnvironmentFailure(
            f"{source} could not be fetched: {type(error).__name__}.", "Give the file's path."
        ) from error


def read_rows(source: Path | str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of a `.json` (array or lines), `.jsonl` or `.parquet` file, each with the given fields.

    Raises:
        NotFound, EnvironmentFailure: see `published`.
        InputError: it cannot be read, or a row lacks a field; names the line or row.
    """
    path = published(source)
    rows = _parquet(path) if path.suffix == ".parquet" else _json(path)
    for number, row in enumerate(rows, 1):
        missing = [f for f in fields if not isinstance(row, dict) or f not in row]
        if missing:
            raise InputError(
                f"{path}, row {number} has no {', '.join(missing)}.",
                "Is it the file of another benchmark?",
            )
    if not rows:
        raise InputError(f"{path} holds no rows.", "Download the file again.")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no parquet file.", "Download the file again.") from error
    return rows


def _json(path: Path) -> list[Any]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason}.", "Is it a JSON file?") from error
    rows: list[Any] = []
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}: {error.msg}.", "Download the file again."
            ) from error
        return rows
    # Not splitlines: published rows hold U+2028 and its like inside their strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: {error.msg}.", "Download the file again."
                ) from error
    return rows
