"""Rows brought in: grouped, mapped, all or none, once, and never a deleted one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import pytest
from small import SECRETS, tiny_config

from llm_unlearn import Workspace
from llm_unlearn.cli import main
from llm_unlearn.errors import InputError
from llm_unlearn.retrieval.foreign import Collection, Contents, Row, look
from llm_unlearn.retrieval.foreign.documents import Keys, draw

Run = Callable[..., tuple[int, Any, str]]


def _contents(*rows: Row) -> Contents:
    names = {row.collection for row in rows}
    made = tuple(Collection(name, len(rows), len(rows), 0, None, ()) for name in sorted(names))
    return Contents("chroma", 1, 1, made, rows, (), ())


def _row(name: str, text: str | None = "words", **metadata: object) -> Row:
    return Row("c", name, text, metadata)


def test_chunks_of_a_document_become_one_in_their_order() -> None:
    rows = [
        _row("a-10", "third", doc_id="a"),
        _row("a-2", "second", doc_id="a"),
        _row("a-1", "first", doc_id="a"),
        _row("b-1", "late", doc_id="b", chunk_index=7, source="https://b.example"),
        _row("b-2", "early", doc_id="b", chunk_index=1.0),
        _row("lone", "alone"),
    ]
    lone, a, b = draw(_contents(*rows), Keys()).documents
    assert (a.id, a.text, a.subject) == ("chroma:c/a", "first\n\nsecond\n\nthird", a.id)
    assert (b.id, b.text, b.source) == ("chroma:c/b", "early\n\nlate", "https://b.example")
    assert (lone.id, lone.text) == ("chroma:c#lone", "alone")
    assert draw(_contents(*reversed(rows)), Keys()).documents == (lone, a, b)


def test_metadata_goes_where_the_module_says() -> None:
    row = _row(
        "x",
        url="https://x.example",
        licence="CC0-1.0",
        tags="one; two",
        groups=["hr", "board"],
        subject="case-7",
        who="Ada",
        team="ops",
    )
    (document,) = draw(_contents(row), Keys()).documents
    assert document.source == "https://x.example"
    assert document.license == "CC0-1.0"
    assert document.tags == ("one", "two")
    assert document.acl == ("board", "hr")
    assert document.subject == "case-7"
    (document,) = draw(_contents(row), Keys(subject_key="who", acl_key="team")).documents
    assert (document.subject, document.acl) == ("Ada", ("ops",))
    (document,) = draw(_contents(row), Keys(group="who")).documents
    assert document.id == "chroma:c/Ada"
    (document,) = draw(_contents(row), Keys(group="who", each=True)).documents
    assert document.id == "chroma:c#x"


@pytest.mark.parametrize(
    ("key", "values", "what"),
    [
        ("acl", (["hr"], None), "access groups"),
        ("acl", (["hr"], ["board"]), "access groups"),
        ("subject", ("a", "b"), "subject"),
        ("license", ("CC0-1.0", "secret"), "license"),
    ],
)
def test_chunks_that_disagree_are_not_merged(key: str, values: Any, what: str) -> None:
    """Merged, a chunk would be shown to whoever may see another one."""
    rows = [_row(str(n), source="s", **{key: value}) for n, value in enumerate(values)]
    drawn = draw(_contents(*rows), Keys())
    assert drawn.documents == ()
    assert drawn.refused == (f"chroma:c/s: its chunks differ in {what}",)
    assert len(draw(_contents(*rows), Keys(each=True)).documents) == 2


@pytest.mark.parametrize("groups", [{"hr": True}, [["hr"]], 7.5, [True]])
def test_groups_that_cannot_be_read_are_refused(groups: object) -> None:
    (problem,) = draw(_contents(_row("x", acl=groups)), Keys()).refused
    assert "no list of names" in problem


def test_rows_that_cannot_be_documents_are_named_without_their_text() -> None:
    rows = [_row("bad", "secret\x00words"), _row("long", "x" * (3 << 20)), _row("none", None)]
    drawn = draw(_contents(*rows, _row("good")), Keys())
    assert [document.id for document in drawn.documents] == ["chroma:c#good"]
    assert drawn.textless == 1
    assert len(drawn.refused) == 2
    assert "secret" not in " ".join(drawn.refused)


def test_nothing_to_bring_in_is_said() -> None:
    with pytest.raises(InputError, match="--text-key"):
        draw(_contents(_row("x", None)), Keys())
    with pytest.raises(InputError, match="no collection 'other'"):
        draw(_contents(_row("x")), Keys(), ("other",))


@pytest.mark.parametrize("kind", ["chroma", "lance", "qdrant", "langchain-orphans"])
def test_no_deleted_text_is_brought_in(made: Any, kind: str) -> None:
    documents = draw(look(made(kind)), Keys()).documents
    assert len(documents) == 20  # five rows a file
    words = "".join(document.content for document in documents)
    for row, text in enumerate(folders.TEXTS):
        assert words.count(text) == (row in folders.ALIVE)
    pages = [folders.TEXTS[row] for row in (20, 21, 22, 24)]  # 23 is deleted
    assert any(document.text == "\n\n".join(pages) for document in documents)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command: exit code, JSON, standard error."""

    def ran(*arguments: object) -> tuple[int, Any, str]:
        stdout = sys.stdout
        code = main([*map(str, arguments), "--json"])
        sys.stdout = stdout  # with --json a command keeps it to itself until the process ends
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return ran


@pytest.fixture
def workspace(tmp_path: Path, tiny_references: dict[str, str]) -> Path:
    place = tmp_path / "ws"
    config = tiny_config(tiny_references)
    Workspace.create(place, keys=tmp_path / "keys", config=config, secrets=SECRETS).close()
    return place


def test_a_folder_is_brought_in_once(
    made: Any, workspace: Path, run: Run, listing: Any, tmp_path: Path
) -> None:
    folder = made("chroma")
    before = listing(folder)
    code, dry, _ = run("import", workspace, folder, "--dry-run", "--subject-key", "author")
    assert (code, dry["dry_run"], dry["counts"]["store"]) == (0, True, 20)
    code, first, _ = run("import", workspace, folder)
    assert code == 0
    assert first["counts"] == {"store": 20, "corpus": 0, "refused": 0, "known": 0}
    assert (first["rows"], first["textless"], first["broken"]) == (90, 0, 0)
    assert first["old"]["left"]["texts"] >= len(folders.DEAD)
    code, second, _ = run("import", workspace, folder)
    assert code == 0
    assert second["counts"] == {"store": 0, "corpus": 0, "refused": 0, "known": 20}
    assert listing(folder) == before
    with Workspace.open(workspace, keys=tmp_path / "keys", readonly=True) as opened:
        vault = opened.opened.vault
        documents = [opened.opened.document(record) for record in vault.records()]
    words = "".join(document.content for document in documents)
    assert all(words.count(text) == (i in folders.ALIVE) for i, text in enumerate(folders.TEXTS))


def test_one_bad_document_keeps_all_out_unless_told(copied: Any, workspace: Path, run: Run) -> None:
    import sqlite3

    folder = copied("chroma")
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        database.execute(
            "UPDATE embedding_metadata SET string_value = 'a' || char(1) || 'b' "
            "WHERE id = 1 AND key = 'chroma:document'"
        )
    code, said, _ = run("import", workspace, folder)
    assert code == 3
    assert "control character U+0001" in said["error"]["problem"]
    assert "chroma:rows/file-0.txt" in said["error"]["problem"]
    with Workspace.open(workspace, readonly=True) as opened:
        assert sum(opened.status().counts.values()) == 0
    code, said, err = run("import", workspace, folder, "--skip-broken")
    assert (code, said["broken"], said["counts"]["store"]) == (0, 1, 19)
    assert "left out 1" in err


def test_what_must_still_be_destroyed_is_told(
    made: Any, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made("chroma-graph")
    assert main(["import", str(workspace), str(folder), "--each-row"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "90 rows became 90 documents" in said
    assert "Vectors were made anew" in said
    assert f"Still to be destroyed: {folder} and every copy of it" in said
    assert "90 live texts" in said
    assert "HNSW graph" in said
    assert not any(text[:40] in said for text in folders.TEXTS)


def test_scan_needs_no_workspace_and_prints_no_text(
    made: Any, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = run("scan", made("qdrant"))
    assert code == 0
    assert said["kind"] == "qdrant"
    assert said["collections"][0]["rows"] == 90
    assert said["left"]["texts"] == len(folders.DEAD)
    assert said["unseen"]
    assert main(["scan", str(made("qdrant"))]) == 0
    shown = json.dumps(said) + capsys.readouterr().out
    assert not any(text[:40] in shown for text in folders.TEXTS)
    assert run("scan", made("qdrant") / "absent")[0] == 4
    assert run("scan", Path(__file__).parent)[0] == 3
