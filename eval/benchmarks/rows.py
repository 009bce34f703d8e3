"""Read the rows of a published benchmark file: JSON lines, or one JSON array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_unlearn.errors import InputError, NotFound


def read_rows(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of a `.json` (array or lines) or `.jsonl` file, each with the given fields.

    Raises:
        NotFound: no such file.
        InputError: it is not JSON, or a row lacks a field; names the line or row.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Give the path of a published benchmark file.")
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
    else:
        # Not splitlines: published rows hold U+2028 and its like inside their strings.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"{path}, line {number}: {error.msg}.", "Download the file again."
                    ) from error
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
