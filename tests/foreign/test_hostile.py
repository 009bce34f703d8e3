"""What a hostile or damaged folder can do: nothing but be refused in one line."""

from __future__ import annotations

import os
import pickle
import random
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_unlearn.errors import Damaged, InputError, UnlearnError
from llm_unlearn.retrieval.foreign import look, pickles
from llm_unlearn.retrieval.foreign.sqlitefile import _Walk, foreign

# protocols before 4 build a set by a call, which stays inert here
_ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 500), 1 << 500)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
_KEYS = st.text() | st.integers(-(1 << 70), 1 << 70)
_OLD = st.recursive(
    _ATOMS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_KEYS, inner, max_size=6),
)
_PLAIN = st.recursive(
    _ATOMS,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(_KEYS, inner, max_size=6)
        | st.tuples(inner, inner)
        | st.sets(_KEYS, max_size=6)
        | st.lists(st.floats(allow_nan=False), max_size=40)
    ),
)


@given(case=st.tuples(_PLAIN, st.integers(4, 5)) | st.tuples(_OLD, st.just(3)))
@settings(max_examples=150, deadline=None)
def test_plain_values_are_read_as_python_reads_them(case: tuple[Any, int]) -> None:
    value, protocol = case
    data = pickle.dumps(value, protocol=protocol)
    assert pickles.load(data, "x") == pickle.loads(data) == value


class _Runs:
    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._place),))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, protocol: int) -> None:
    place = tmp_path / "made"
    data = pickle.dumps(({"a": _Runs(place)}, {}), protocol=protocol)
    with pytest.raises(InputError, match=r"posix\.mkdir.*no vector store"):
        pickles.load(data, "index.pkl")
    assert not place.exists()
    pickle.loads(data)
    assert place.exists()  # it was a real one


def test_a_folder_with_such_a_pickle_is_refused(copied: Any, tmp_path: Path) -> None:
    folder = copied("langchain")
    (folder / "index.pkl").write_bytes(pickle.dumps(_Runs(tmp_path / "made")))
    with pytest.raises(InputError, match="do not open it"):
        look(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "open"])
def test_builtins_that_act_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        pickles.load(f"cbuiltins\n{name}\n.".encode(), "x")


def test_named_things_stay_inert() -> None:
    held = pickles.load(pickle.dumps(uuid.UUID(int=5)), "x")
    assert isinstance(held, pickles.Made)
    assert held.of == pickles.Named("uuid", "UUID")
    assert pickles.fields(held)["int"] == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04N",
        b"\x80\x04.",
        b"\x80\x04X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04h\x05.",
        b"\x80\x04e.",
        b"\x80\x04(u.",
        b"\x80\x04}](N\x85NuG.",
        b"\x80\x04}" + b")" + b"\x85" * 200000 + b"Ns.",  # a key so deep that hashing it overflows
        b"\x80\x04\x8b\xff\xff\xff\xff.",
        b"\x80\x04}\x8c\x04uuid\x8c\x04UUID\x93)\x81Ns.",  # an object as a key
        b"\x80\x04\x8b\x88\x13\x00\x00" + b"\x7f" * 5000 + b".",  # a number too long to print
        b"P\nid\n.",
        b"G",
        b"(lp0\nR.",
    ],
)
def test_broken_pickles_are_damaged(data: bytes) -> None:
    with pytest.raises(Damaged, match="no readable pickle"):
        pickles.load(data, "x")


@pytest.mark.parametrize("kind", ["chroma", "chroma-graph", "qdrant", "langchain"])
def test_damage_anywhere_is_told_or_harmless(copied: Any, kind: str) -> None:
    """Flipped and cut files: an answer or an error of the tree, never a traceback, never a hang."""
    folder, rng = copied(kind), random.Random(kind)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size > 1]
    refused: list[UnlearnError] = []
    for turn in range(30):
        file = rng.choice(files)
        before = file.read_bytes()
        data = bytearray(before)
        if turn % 3:
            for _ in range(rng.choice((1, 20, 2000))):
                data[rng.randrange(min(len(data), rng.choice((64, 1 << 20))))] = rng.randrange(256)
        else:
            del data[rng.randrange(len(data)) :]
        file.write_bytes(bytes(data))
        try:
            look(folder)
        except UnlearnError as error:
            refused.append(error)
        file.write_bytes(before)
    assert refused
    assert all(error.problem and error.remedy for error in refused)
    look(folder)


def test_a_faiss_file_that_claims_more_than_it_has_is_refused(copied: Any) -> None:
    folder = copied("langchain")
    file = folder / "index.faiss"
    data = file.read_bytes()
    for at, value in ((4, 1 << 30), (8, 1 << 60), (8, 91), (37, 1 << 62)):
        size = 4 if at == 4 else 8
        file.write_bytes(data[:at] + value.to_bytes(size, "little") + data[at + size :])
        with pytest.raises(Damaged, match="no whole FAISS index"):
            look(folder)


def test_a_database_left_in_the_middle_of_a_change_is_refused(copied: Any) -> None:
    folder = copied("chroma")
    hot = bytes.fromhex("d9d505f920a163d7") + bytes(600)
    (folder / "chroma.sqlite3-journal").write_bytes(hot)
    with pytest.raises(InputError, match="middle of a change"):
        look(folder)


def test_a_view_in_a_table_s_place_is_not_run(tmp_path: Path) -> None:
    """A view that never ends, where a table is looked for."""
    with sqlite3.connect(tmp_path / "chroma.sqlite3") as database:
        endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id FROM n) SELECT id FROM n"
        database.execute(f"CREATE VIEW collections AS {endless}")
    assert look(tmp_path).rows == ()


_STEP = st.tuples(st.sampled_from(("add", "long", "delete", "grow")), st.integers(0, 10**6))


@given(steps=st.lists(_STEP, min_size=5, max_size=60), page=st.sampled_from((512, 1024, 4096)))
@settings(max_examples=40, deadline=None)
def test_free_space_is_exactly_what_can_be_erased(
    steps: list[tuple[str, int]], page: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Zeroing all of it leaves every row and a sound database; and no deleted word is elsewhere.

    The reference is SQLite itself: its `integrity_check`, and its rows before and after.
    """
    path = tmp_path_factory.mktemp("free") / "x.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"PRAGMA page_size = {page}")
    database.execute("PRAGMA secure_delete = OFF")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, words TEXT)")
    ever: set[str] = set()
    for number, (what, value) in enumerate(steps):
        mark = f"<{number}:{value:07d}>"
        if what in ("add", "long"):
            words = mark * (2 if what == "add" else 1 + value % 400)
            ever.add(mark)
            row = (number, f"name {mark}", words)
            database.execute("INSERT INTO t VALUES (?, ?, ?)", row)
        elif what == "delete":
            database.execute("DELETE FROM t WHERE id % 3 = ?", (value % 3,))
        else:
            database.execute("UPDATE t SET words = words || words WHERE id % 7 = ?", (value % 7,))
    rows = database.execute("SELECT * FROM t ORDER BY id").fetchall()
    database.close()
    image = path.read_bytes()
    with foreign(path) as opened:
        free = list(opened.free())
        roots = opened._roots
    erased = bytearray(image)
    for start, end in _Walk(image).dead(roots):
        assert start <= end
        erased[start:end] = bytes(end - start)
    assert sum(map(len, free)) == sum(end - start for start, end in _Walk(image).dead(roots))
    path.write_bytes(bytes(erased))
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("SELECT * FROM t ORDER BY id").fetchall() == rows
    database.close()
    live = "".join(f"{name}{words}" for _, name, words in rows)
    for mark in ever:
        if mark not in live:
            assert mark.encode() not in erased
