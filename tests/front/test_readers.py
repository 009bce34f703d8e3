"""Reading documents: all or nothing, one line for what is wrong, little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_unlearn.documents import Document
from llm_unlearn.errors import InputError
from llm_unlearn.formats import Limits
from llm_unlearn.readers import Broken, read_documents, scan_documents

GOOD = b'{"id": "a", "text": "A text."}\n'

bodies = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: bool(text.strip())
)
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
labels = st.lists(names.filter(lambda name: ";" not in name), max_size=3).map(tuple)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    fields: dict[str, Any] = {
        "id": draw(names),
        "subject": draw(names),
        "license": draw(st.just("") | names),
        "source": draw(st.just("") | names),
        "tags": draw(labels),
        "acl": draw(labels),
    }
    if draw(st.booleans()):
        fields["text"] = draw(bodies)
    else:
        fields["messages"] = [
            {"role": "user", "content": draw(bodies)},
            {"role": "assistant", "content": draw(bodies)},
        ]
    return Document(**fields)


collections = st.lists(documents(), min_size=1, max_size=5, unique_by=lambda one: one.id)


@given(collections)
def test_jsonl_round_trip(
    tmp_path_factory: pytest.TempPathFactory, written: list[Document]
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "d.jsonl"
    path.write_text("".join(one.model_dump_json() + "\n" for one in written), encoding="utf-8")
    assert list(read_documents(path)) == written
    report = scan_documents(path)
    assert (report.total, report.broken_total, report.broken) == (len(written), 0, [])


@given(st.binary(max_size=400))
@example(b"\xff\xfe{\x00")
@example(b"[" * 100_000)
@example(b'{"id": ' + b"9" * 5000 + b"}")
@example(b'{"id": "\\ud800", "text": "x"}')
@example(b'{"\\ud800": 1}')
@example(b'{"id": "a", "text": "x", "tags": {"a": 1}}')
@example(b'"PAR1"')
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_no_bytes_give_anything_but_documents_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / f"d{suffix}"
    path.write_bytes(data)
    for skip in (False, True):
        try:
            read = read_documents(folder if suffix == ".txt" else path, skip_broken=skip)
            assert all(isinstance(one, Document) for one in read)
        except InputError as error:
            told = error
        else:
            continue
        assert str(told).isprintable()
        assert told.remedy


@given(collections, st.data())
def test_one_broken_line_anywhere_refuses_the_file_whole(
    tmp_path_factory: pytest.TempPathFactory, written: list[Document], data: st.DataObject
) -> None:
    lines = [one.model_dump_json() for one in written]
    at = data.draw(st.integers(0, len(lines)))
    lines.insert(at, data.draw(st.sampled_from(["{", "[]", '{"id": "x"}', "nonsense"])))
    path = tmp_path_factory.mktemp("broken") / "d.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(
        InputError, match=rf"1 of {len(lines)} documents are broken: line {at + 1}:"
    ):
        read_documents(path)
    assert list(read_documents(path, skip_broken=True)) == written


LONG = Limits(max_document_bytes=1000)

BROKEN_LINES = [
    (b"{x", "not valid JSON: Expecting property name enclosed in double quotes at column 2"),
    (b"[1]", "not a JSON object but list"),
    (b"null", "not a JSON object but NoneType"),
    (b'{"id": "x", "id": "y", "text": "t"}', "not valid JSON: the key 'id' comes twice"),
    (b'{"text": "t"}', "the field 'id' is missing"),
    (b'{"id": "", "text": "t"}', "the field 'id' is empty"),
    (b'{"id": "x\\ny", "text": "t"}', "the field 'id' holds a control character or a line break"),
    (b'{"id": 7, "text": "t"}', "the field 'id' must be text, not int"),
    (b'{"id": "x", "txt": "t"}', "unknown field 'txt': did you mean 'text'?"),
    (
        b'{"id": "x", "text": "t", "body": 1}',
        "unknown field 'body': known are id, text, messages, subject, source, license, tags, acl, "
        "date, metadata",
    ),
    (b'{"id": "x", "text": "t", "tags": "y"}', "the field 'tags' must be a list, not str"),
    (b'{"id": "x", "text": "t", "tags": [1]}', "the field 'tags.0' must be text, not int"),
    (b'{"id": "x"}', "give exactly one of text and messages"),
    (b'{"id": "x", "text": " \\n"}', "the text is empty"),
    (
        b'{"id": "x", "text": "t", "messages": [{"role": "assistant", "content": "c"}]}',
        "give exactly one of text and messages",
    ),
    (
        b'{"id": "x", "messages": [{"role": "user", "content": "c"}]}',
        "the last message must be the assistant's",
    ),
    (
        b'{"id": "x", "messages": [{"role": "bot", "content": "c"}]}',
        "the field 'messages.0.role': input should be 'system', 'user' or 'assistant'",
    ),
    (
        b'{"id": "x", "text": "a\\u0000b"}',
        "the text holds the control character U+0000; is this a binary file?",
    ),
    (b'{"id": "x", "text": "\xff"}', "not UTF-8: byte 0xff at offset 21; is this a binary file?"),
    (b'{"id": "x", "text": "\\ud800"}', "the text is not valid UTF-8"),
    (b'{"id": "x", "text": "t", "source": "\\ud800"}', "the field 'source' is not valid UTF-8"),
    (
        b'{"id": "x", "text": "' + b"t" * 1000 + b'"}',
        "the line is over the limit of 1000 bytes for one document",
    ),
    (b'{"id": "a", "text": "Again."}', "the id 'a' was already used in line 1"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN_LINES)
def test_each_kind_of_broken_line(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD.replace(b'"a"', b'"b"'))
    with pytest.raises(InputError) as caught:
        read_documents(path, limits=LONG)
    assert caught.value.problem == f"{path}: 1 of 3 documents are broken: line 3: {problem}"
    assert caught.value.remedy == "Correct them, or pass --skip-broken to take the rest."
    assert [one.id for one in read_documents(path, skip_broken=True, limits=LONG)] == ["a", "b"]


def test_twenty_broken_lines_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(GOOD + b"[]\n" * 1500)
    report = scan_documents(path)
    assert (report.total, report.broken_total, len(report.broken)) == (1501, 1500, 1000)
    assert report.broken[0] == Broken(2, "", "not a JSON object but list")
    with pytest.raises(InputError) as caught:
        read_documents(path)
    assert caught.value.problem.count("not a JSON object") == 20
    assert caught.value.problem.endswith("line 21: not a JSON object but list; and 1480 more")


def test_json_nested_without_end_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"[" * 200_000)
    assert scan_documents(path).broken == [Broken(1, "", "nested too deeply")]


def test_a_text_is_never_quoted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b'{"id": "x", "text": "secret", "tags": ["secret\\u0000"]}\n{"id": "y", "text": secret}\n'
        b'{"id": "z", "text": ["secret"]}\n{"id": "v", "text": "secret", "messages": "secret"}\n'
    )
    with pytest.raises(InputError) as caught:
        read_documents(path)
    assert "4 of 4" in caught.value.problem
    assert "secret" not in str(caught.value)


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n  \n")
    assert [one.id for one in read_documents(path)] == ["a"]


def test_a_line_of_exactly_the_limit_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    line = GOOD.rstrip(b"\n")
    for end in (b"", b"\n", b"\r\n"):
        path.write_bytes(line + end)
        assert len(list(read_documents(path, limits=Limits(len(line))))) == 1
        with pytest.raises(InputError, match="over the limit of 29 bytes"):
            read_documents(path, limits=Limits(len(line) - 1))


def test_a_line_of_50_mb_and_a_long_file_need_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'{"id": "long", "text": "')
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n')
        for number in range(20):
            file.write(json.dumps({"id": f"n{number}", "text": "y" * (1 << 20)}).encode() + b"\n")
    tracemalloc.start()
    try:
        ids = [one.id for one in read_documents(path, skip_broken=True)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(ids) == 21
    assert peak < 16 << 20
    assert scan_documents(path).broken == [
        Broken(2, "", "the line is over the limit of 2097152 bytes for one document")
    ]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("d.jsonl", b"", "{path} is empty: it holds no document."),
        ("d.jsonl", b"\n \n", "{path} is empty: it holds no document."),
        ("d.csv", b"", "{path} is empty: it holds no document."),
        ("d.csv", b"id,text\n", "{path} is empty: it holds no document."),
        ("d.json", b"{}", "{path}: the extension '.json' is not one that can be read."),
        ("d", b"{}", "{path}: the extension '' is not one that can be read."),
        ("d.jsonl", None, "{path} cannot be read: No such file or directory."),
    ],
)
def test_nothing_to_read(tmp_path: Path, name: str, data: bytes | None, told: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    for read in (scan_documents, read_documents):
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.problem == told.format(path=path)


def test_skipping_every_line_is_an_error_too(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"[]\n")
    with pytest.raises(InputError, match="holds no usable document: line 1: not a JSON object"):
        read_documents(path, skip_broken=True)


def test_standard_input_and_pipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Standard input cannot be ingested") as caught:
        read_documents(Path("-"))
    assert caught.value.remedy == "Save it to a .jsonl file first, and give that."
    os.mkfifo(tmp_path / "d.jsonl")
    with pytest.raises(InputError, match="is not a regular file, and cannot be read twice"):
        scan_documents(tmp_path / "d.jsonl")


def test_a_path_that_would_break_the_line_is_escaped(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_documents(tmp_path / "a\nb\x1b[2J.jsonl")
    assert "\\n" in str(caught.value)
    assert str(caught.value).isprintable()


@settings(max_examples=25)
@given(st.integers(0, 3), st.sampled_from(["edit", "append", "cut", "same size"]))
def test_a_file_that_changes_between_the_passes_is_refused(
    tmp_path_factory: pytest.TempPathFactory, taken: int, change: str
) -> None:
    """Whatever is yielded is what was checked; a change is told at the latest at the end."""
    path = tmp_path_factory.mktemp("change") / "d.jsonl"
    lines = [f'{{"id": "{i}", "text": "{"t" * 5000}"}}\n'.encode() for i in range(40)]
    path.write_bytes(b"".join(lines))
    status = path.stat()
    reader = read_documents(path)
    got = [next(reader) for _ in range(taken)]
    if change == "append":
        path.write_bytes(b"".join([*lines, b'{"id": "new", "text": "u"}\n']))
    elif change == "cut":
        path.write_bytes(b"".join(lines[:-1]))
    else:
        lines[30] = lines[30].replace(b"t" * 9, b"u" * 9 if change == "same size" else b"u", 1)
        path.write_bytes(b"".join(lines))
    if change == "same size":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match="changed while it was being read"):
        got += list(reader)
    assert [one.id for one in got] == [str(i) for i in range(len(got))]
    assert all(one.text == "t" * 5000 for one in got)


def test_reading_loads_nothing_heavy_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "d.jsonl").write_bytes(GOOD)
    program = (
        "import sys; from pathlib import Path; from llm_unlearn.readers import *\n"
        "print([one.id for one in read_documents(Path('in/d.jsonl'))])\n"
        "print(sorted({'torch', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )
    assert done.stdout == "['a']\n[]\n"
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "in",
        "in/d.jsonl",
    ]
