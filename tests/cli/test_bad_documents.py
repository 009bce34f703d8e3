"""Documents and requests that cannot be used: one line, exit 3 or 4, the workspace as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GOOD = json.dumps({"id": "new", "text": "A good line."}).encode() + b"\n"
FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty.jsonl": (b"", ["empty"]),
    "binary.jsonl": (bytes(range(256)) * 64, ["broken", "line 1"]),
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(64), [".png"]),
    "control.jsonl": (
        GOOD + json.dumps({"id": "b", "text": "PK\x03\x04"}).encode(),
        ["line 2", "binary"],
    ),
    "latin.jsonl": (
        GOOD + '{"id": "b", "text": "caf\xe9"}\n'.encode("latin-1"),
        ["line 2", "UTF-8"],
    ),
    "twins.jsonl": (GOOD + GOOD.replace(b"good", b"bad"), ["line 2", "'new'", "line 1"]),
    "prose.txt": (b"Once upon a time.", [".txt", ".jsonl"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_whole(cli: Any, place: Any, tmp_path: Path, name: str) -> None:
    before = place.state()
    data, words = FILES[name]
    (tmp_path / name).write_bytes(data)
    cli("ingest", *place.arguments, name).refused(3, name, *words)
    assert place.state() == before


def test_a_file_that_is_not_there(cli: Any, place: Any) -> None:
    before = place.state()
    cli("ingest", *place.arguments, "none.jsonl").refused(3, "none.jsonl")
    cli("ingest", *place.arguments, "-").refused(3, "Standard input")
    assert place.state() == before


def test_fifty_megabytes_on_one_line(cli: Any, place: Any, tmp_path: Path) -> None:
    before = place.state()
    with (tmp_path / "long.jsonl").open("wb") as file:
        file.write(GOOD + b'{"id": "long", "text": "')
        for _ in range(50):
            file.write(b"word " * (1024 * 1024 // 5))
        file.write(b'"}\n')
    cli("ingest", *place.arguments, "long.jsonl").refused(3, "long.jsonl", "line 2")
    assert place.state() == before


def test_an_id_taken_by_other_words(
    cli: Any, place: Any, documents: Any, corpus: Any, tmp_path: Path
) -> None:
    """The good document beside it is not taken in either."""
    before = place.state()
    other = {**corpus[0], "text": "Quite another text."}
    source = documents(tmp_path / "taken.jsonl", [other, {"id": "new", "text": "A good line."}])
    cli("ingest", *place.arguments, source).refused(3, corpus[0]["id"], "nothing was ingested")
    cli("where", *place.arguments, "new").refused(4, "new")
    assert place.state() == before


@pytest.mark.parametrize(
    ("chosen", "word"),
    [
        (["--subject", "nobody"], "nobody"),
        (["--id", "nothing-0"], "nothing-0"),
        (["--id", "quill-0", "--id", "nothing-0"], "nothing-0"),
        (["--source", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_is_not_there_cannot_be_removed(
    cli: Any, place: Any, chosen: list[str], word: str
) -> None:
    before = place.state()
    cli("takedown", *place.arguments, *chosen, "--yes").refused(4, word)
    assert place.state() == before


@pytest.mark.parametrize("chosen", [["--subject", "  "], ["--id", ""], ["--subject", "a\x1b[2J"]])
def test_a_name_that_cannot_be_one(cli: Any, place: Any, chosen: list[str]) -> None:
    before = place.state()
    done = cli("takedown", *place.arguments, *chosen, "--yes")
    done.refused(3)
    assert "\x1b" not in done.err
    assert place.state() == before


def test_a_bad_request_file(cli: Any, place: Any, tmp_path: Path) -> None:
    before = place.state()
    for name, text, code, word in (
        ("none.yaml", None, 4, "cannot be read"),
        ("torn.yaml", "id: [1", 3, "line"),
        ("lacking.yaml", "id: DMCA-1\nkind: dmca\n", 3, "lacking.yaml"),
        ("odd.yaml", "- 7\n", 3, "odd.yaml"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        done = cli("takedown", *place.arguments, "--request", name, "--yes")
        done.refused(code, name, word)
    assert place.state() == before
