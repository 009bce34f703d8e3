"""CSV, parquet and folders: the same documents, the same refusals, and no copy of the text."""

from __future__ import annotations

import csv
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.formats import Limits
from llm_unlearn.readers import Broken, read_documents, scan_documents

SECRET = "the heron waits by the quiet lock"


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}]


def told(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(read_documents(path, **options))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value.problem.removeprefix(f"{path}: ")


# --- CSV ---


cells = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=";"), min_size=1, max_size=40
).filter(lambda text: text.strip() == text)


@given(
    st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6, unique_by=lambda row: row[0])
)
def test_csv_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    """Against the standard library's writer; ids such as 007 and NA stay what they are."""
    path = tmp_path_factory.mktemp("csv") / "d.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "tags"])
        writer.writerows((name, f"{text}\n007", f"{tag};NA;") for name, text, tag in rows)
    assert list(read_documents(path)) == [
        Document(id=name, text=f"{text}\n007", tags=(tag, "NA")) for name, text, tag in rows
    ]


def test_csv_with_messages_and_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "d.CSV"
    path.write_text(
        "id,text,messages,acl\r\n007,NA,,\r\n"
        'x,,"[{""role"": ""user"", ""content"": ""q""}, '
        '{""role"": ""assistant"", ""content"": ""c""}]",hr; board\r\n'
    )
    assert list(read_documents(path)) == [
        Document(id="007", text="NA"),
        Document.model_validate(
            {
                "id": "x",
                "messages": TURNS,
                "acl": ["hr", "board"],
            }
        ),
    ]


def test_csv_broken_rows_have_the_line_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(
        b'id,text,messages\na,"two\nlines",\nb,t,,,\n\nc,\xff,\na,again,\nd,,[\ne,\x00,\nf\n'
    )
    assert scan_documents(path).broken == [
        Broken(4, "", "5 cells, but the header has 3"),
        Broken(6, "c", "the text is not valid UTF-8"),
        Broken(7, "a", "the id 'a' was already used in line 2"),
        Broken(8, "", "the cell 'messages' is not valid JSON"),
        Broken(9, "e", "the text holds the control character U+0000; is this a binary file?"),
        Broken(10, "", "1 cells, but the header has 3"),
    ]
    assert [one.id for one in read_documents(path, skip_broken=True)] == ["a"]
    assert told(path).startswith("6 of 7 documents are broken: line 4: 5 cells")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"id,txt\na,b\n", "unknown column 'txt': did you mean 'text'?"),
        (b"id;text\na;b\n", "unknown column 'id;text': did you mean 'text'?"),
        (b"id,text,text\na,b,c\n", "the column 'text' comes twice."),
        (
            b'id,text\na,b\nc,"d\ne,f\n',
            "line 3 is not valid CSV: unexpected end of data.",
        ),
        (b'id,text\na,"b"c\n', "line 2 is not valid CSV: ',' expected after '\"'."),
        (
            b'id,text\na,b\nc,"' + b"d\n" * 3000,
            "line 3: the record is over the limit of 1000 bytes for one document.",
        ),
        (
            b"id,text\na," + b"d" * 3000 + b"\n",
            "line 2: the record is over the limit of 1000 bytes for one document.",
        ),
    ],
)
def test_csv_that_cannot_be_told_apart_is_refused_whole(
    tmp_path: Path, data: bytes, problem: str, skip: bool
) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(data)
    assert told(path, skip_broken=skip, limits=Limits(1000)) == problem


def test_csv_cells_longer_than_the_module_s_own_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("id,text\na," + "x" * 200_000 + "\n")
    assert [len(one.content) for one in read_documents(path)] == [200_000]


# --- parquet ---


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def test_parquet_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a [1] *.parquet"  # a name that a pattern would not find
    write_parquet(
        path,
        [
            {"id": "007", "text": SECRET, "tags": ["a"], "messages": None},
            {
                "id": "b",
                "text": None,
                "tags": None,
                "messages": TURNS,
            },
        ],
    )
    assert list(read_documents(path)) == [
        Document(id="007", text=SECRET, tags=("a",)),
        Document.model_validate({"id": "b", "messages": TURNS}),
    ]


def test_parquet_rows_are_checked_like_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    write_parquet(
        path, [{"id": "a", "text": "t"}, {"id": "b", "text": ""}, {"id": "a", "text": "u"}]
    )
    assert told(path) == (
        "2 of 3 documents are broken: row 2: the text is empty; "
        "row 3: the id 'a' was already used in row 1"
    )
    assert [one.id for one in read_documents(path, skip_broken=True)] == ["a"]
    write_parquet(path, [{"id": 7, "text": "t"}])
    assert told(path) == "1 of 1 documents are broken: row 1: the field 'id' must be text, not int"
    write_parquet(path, [{"id": "a", "text": "t" * 1001}])
    assert told(path, limits=Limits(1000)) == (
        "1 of 1 documents are broken: row 1: the text of 1001 bytes is over the limit of 1000 "
        "bytes for one document"
    )
    write_parquet(path, [{"id": "a", "text": "t", "n": 1}])
    assert told(path).startswith("unknown column 'n': known are id, text,")
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), path)
    assert told(path) == f"{path} is empty: it holds no document."


def test_damaged_parquet_is_an_input_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.parquet"
    write_parquet(path, [{"id": f"{i}", "text": f"{SECRET} {i}"} for i in range(50)])
    whole = path.read_bytes()
    chance = random.Random(0)
    flipped = []
    for _ in range(8):
        noisy = bytearray(whole)
        for _ in range(3):
            noisy[chance.randrange(len(noisy))] ^= 1 << chance.randrange(8)
        flipped.append(bytes(noisy))
    cut = (b"", b"PAR1", b"PAR1PAR1", b"x" * 100, whole[:-1], whole[: len(whole) // 2])
    messages = []
    for data in (*cut, *flipped):
        path.write_bytes(data)
        try:
            assert len(list(read_documents(path, skip_broken=True))) <= 50
        except InputError as error:
            messages.append(str(error))
    assert len(messages) >= len(cut)
    assert all(one.isprintable() for one in messages)
    assert capfd.readouterr() == ("", "")


def test_parquet_leaves_no_copy_of_the_text(tmp_path: Path) -> None:
    """Watched from outside: home, cache and temporary folders all lie in one that is searched."""
    data = tmp_path / "data"
    data.mkdir()
    write_parquet(
        data / "d.parquet",
        [{"id": str(i), "text": f"{SECRET} {i}"} for i in range(500)],
        compression="none",
    )
    away = tmp_path / "away"
    away.mkdir()
    program = (
        "import socket, sys; from pathlib import Path\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from llm_unlearn.readers import read_documents\n"
        f"secret = {SECRET!r}.encode()\n"
        "for number, one in enumerate(read_documents(Path(sys.argv[1]))):\n"
        "    if number % 100 == 0:\n"
        "        for path in Path(sys.argv[2]).rglob('*'):\n"
        "            assert not path.is_file() or secret not in path.read_bytes(), path\n"
        "print(number + 1)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, str(data / "d.parquet"), str(away)],
        capture_output=True,
        text=True,
        check=True,
        cwd=away,
        env={**clean, "HOME": str(away), "TMPDIR": str(away)},
    )
    assert done.stdout == "500\n"
    assert [path for path in away.rglob("*") if path.is_file()] == []


def test_a_parquet_column_declared_as_an_image_opens_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata of a parquet file can ask `datasets` to fetch what a cell names."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    image = pa.array([{"bytes": None, "path": "http://x.example/y"}])
    features = {"id": {"dtype": "string", "_type": "Value"}, "text": {"_type": "Image"}}
    hint = json.dumps({"info": {"features": features}})
    table = pa.table({"id": ["a"], "text": image}).replace_schema_metadata({"huggingface": hint})
    pq.write_table(table, tmp_path / "d.parquet")
    assert told(tmp_path / "d.parquet").startswith("1 of 1 documents are broken: row 1: the field")


# --- folders ---


def test_folder_round_trip(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "x.md").write_text("# X\n")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfeins\r\n")
    (tmp_path / "a.TXT").write_text("a")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "z.txt").write_text("hidden")
    (tmp_path / ".DS_Store").write_bytes(b"\x00")
    assert list(read_documents(tmp_path)) == [
        Document(id="a.TXT", text="a"),
        Document(id="b.txt", text="eins\r\n"),
        Document(id="b/c/x.md", text="# X\n"),
    ]


def test_folder_with_broken_files(tmp_path: Path) -> None:
    good = tmp_path / "d"
    good.mkdir()
    (good / "a.txt").write_text("a")
    (good / "b.txt").write_bytes(b"\x89PNG\xff")
    (good / "c.md").write_bytes(b"")
    (good / "d.pdf").write_bytes(b"%PDF")
    (good / "e.txt").symlink_to("a.txt")
    (good / "f.txt").write_text("f" * 1001)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("outside")
    (good / "g").symlink_to(tmp_path / "elsewhere")
    assert told(good, limits=Limits(1000)) == (
        "5 of 6 documents are broken: "
        "b.txt: not UTF-8: byte 0x89 at offset 0; is this a binary file?; "
        "c.md: the text is empty; "
        "d.pdf: neither .txt nor .md; move it elsewhere, or hide it with a dot; "
        "e.txt: not a regular file; "
        "f.txt: the file is over the limit of 1000 bytes for one document"
    )
    assert [one.id for one in read_documents(good, skip_broken=True, limits=Limits(1000))] == [
        "a.txt"
    ]


def test_folder_without_documents(tmp_path: Path) -> None:
    assert told(tmp_path) == f"{tmp_path} has no .txt or .md file."


def test_folder_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.txt")).write_text("a")
    assert told(tmp_path, skip_broken=True) == (
        f"{tmp_path} holds no usable document: 'a\\udcff.txt': the field 'id' is not valid UTF-8"
    )
