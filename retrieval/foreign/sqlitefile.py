"""Another program's SQLite file: read without touching it, and what its free space still holds.

Guarantees: the file, its folder and its log are not changed and no file is made beside them (the
database is opened immutable; with a write-ahead log, a copy in memory has the log's committed pages).
Values come only from ordinary tables, never from a view or a virtual table, so that a hostile schema
runs nothing. Free space is found by walking the pages: free pages, free blocks, the gap between a
page's cells, the ends of overflow chains, pages that nothing refers to, and the whole log.

Not guaranteed: bytes that SQLite itself has overwritten, and blocks of the disk outside the file.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from llm_unlearn.errors import Damaged, InputError
from llm_unlearn.retrieval.foreign.contents import regular

_HEADER = b"SQLite format 3\0"
_HOT = bytes.fromhex("d9d505f920a163d7")  # how a rollback journal that must be applied begins


class Foreign:
    """One open database of another program."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, image: bytes, log: bytes
    ) -> None:
        self.path = path
        self._connection = connection
        self._image = image
        self._log = log
        found = connection.execute("SELECT name, sql, rootpage, type FROM sqlite_master").fetchall()
        self._roots = [root for _, _, root, _ in found if isinstance(root, int) and root > 0]
        self.schema = [sql for _, sql, _, _ in found if isinstance(sql, str)]
        self.tables = {
            name
            for name, sql, root, kind in found
            if kind == "table" and root and isinstance(sql, str)
        }

    def rows(self, table: str, columns: str) -> Iterator[tuple[object, ...]]:
        """The rows of an ordinary table; none if there is no such table.

        Raises:
            Damaged: the table has other columns or cannot be read.
        """
        if table not in self.tables:
            return
        try:
            yield from self._connection.execute(f'SELECT {columns} FROM "{table}"')  # noqa: S608
        except sqlite3.Error as error:
            raise _unreadable(self.path, error) from error

    def texts(self, but: Collection[str] = ()) -> Iterator[str]:
        """Every text in every ordinary table but these, and the schema."""
        yield from self.schema
        for table in sorted(self.tables.difference(but)):
            quoted = table.replace('"', '""')
            try:
                for row in self._connection.execute(f'SELECT * FROM "{quoted}"'):  # noqa: S608
                    yield from (value for value in row if isinstance(value, str))
            except sqlite3.Error as error:
                raise _unreadable(self.path, error) from error

    def free(self) -> Iterator[bytes]:
        """The bytes of the file that belong to no row."""
        try:
            for start, end in _Walk(self._image).dead(self._roots):
                yield self._image[start:end]
        except (IndexError, struct.error) as error:
            raise _unreadable(self.path, error) from error

    @property
    def log(self) -> bytes:
        """The write-ahead log, copies of live pages included."""
        return self._log


@contextmanager
def foreign(path: Path) -> Iterator[Foreign]:
    """Open another program's database.

    Raises:
        InputError: it is none, or its program was stopped in the middle of a change.
        Damaged: it cannot be read.
    """
    if not regular(path):
        raise InputError(f"{path} is not a file.", "Links are not followed: give the real folder.")
    image, log = path.read_bytes(), _beside(path, "-wal")
    if not image.startswith(_HEADER) or len(image) < 512:
        raise InputError(f"{path} is not an SQLite database.", "Is the folder complete?")
    if _beside(path, "-journal").startswith(_HOT):
        raise InputError(
            f"{path} was left in the middle of a change.",
            "Open it once with the program it came from, on a copy if it is evidence.",
        )
    whole = _with_log(image, log) if log else image
    try:
        if whole is image:
            place = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
            connection = sqlite3.connect(place, uri=True)
        else:
            connection = sqlite3.connect(":memory:")
            # version 1 in the header: a copy in memory keeps no log
            connection.deserialize(whole[:18] + b"\1\1" + whole[20:])
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA query_only = ON")
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield Foreign(path, connection, whole, log)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Damaged:
    return Damaged(f"{path} cannot be read as a database: {error}.", "Is the folder complete?")


def _beside(path: Path, suffix: str) -> bytes:
    other = path.with_name(path.name + suffix)
    return other.read_bytes() if regular(other) else b""


def _with_log(image: bytes, log: bytes) -> bytes:
    """The database with the committed frames of its log (sqlite.org/fileformat2.html#walformat)."""
    if len(log) < 32 or log[:3] != b"\x37\x7f\x06":
        return image
    order = ">" if log[3] & 1 else "<"
    size = int.from_bytes(log[8:12], "big")
    if size not in {1 << power for power in range(9, 17)}:
        return image
    salts = log[16:24]
    sums = _sums(log[:24], order, (0, 0))
    if sums != struct.unpack(">2I", log[24:32]):
        return image
    pages: dict[int, bytes] = {}
    waiting: dict[int, bytes] = {}
    length = 0
    for at in range(32, len(log) - size - 23, size + 24):
        head, page = log[at : at + 24], log[at + 24 : at + 24 + size]
        number, commit = struct.unpack(">2I", head[:8])
        sums = _sums(page, order, _sums(head[:8], order, sums))
        if head[8:16] != salts or sums != struct.unpack(">2I", head[16:24]) or number > 1 << 31:
            break
        waiting[number] = page
        if commit:
            pages.update(waiting)
            waiting, length = {}, commit
    if not pages or length * size > len(image) + len(log):
        return image
    made = bytearray(image[: length * size].ljust(length * size, b"\0"))
    for number, page in pages.items():
        if 0 < number <= length:
            made[(number - 1) * size : number * size] = page
    return bytes(made)


def _sums(data: bytes, order: str, start: tuple[int, int]) -> tuple[int, int]:
    one, two = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


class _Walk:
    """The pages of a database (sqlite.org/fileformat2.html), each looked at once."""

    def __init__(self, image: bytes) -> None:
        size = int.from_bytes(image[16:18], "big")
        self._size = 65536 if size == 1 else size
        if self._size < 512:
            raise IndexError("page size")
        self._usable = self._size - image[20]
        self._image = image
        self._count = len(image) // self._size
        self._seen = bytearray(self._count + 1)

    def dead(self, roots: list[int]) -> Iterator[tuple[int, int]]:
        """Start and end of every stretch that belongs to no row."""
        yield from self._free_pages()
        waiting = [1, *roots]
        while waiting:
            number = waiting.pop()
            if self._first_visit(number):
                yield from self._tree_page(number, waiting)
        for number in range(1, self._count + 1):
            if not self._seen[number]:
                yield self._within(number, 0, self._size)
        yield self._count * self._size, len(self._image)

    def _within(self, number: int, start: int, end: int) -> tuple[int, int]:
        """Part of a page as part of the file."""
        base, size = (number - 1) * self._size, self._size
        return base + min(start, size), base + max(min(end, size), min(start, size))

    def _page(self, number: int) -> bytes:
        return self._image[(number - 1) * self._size : number * self._size]

    def _first_visit(self, number: int) -> bool:
        if not 0 < number <= self._count or self._seen[number]:
            return False
        self._seen[number] = 1
        return True

    def _free_pages(self) -> Iterator[tuple[int, int]]:
        trunk = int.from_bytes(self._image[32:36], "big")
        while self._first_visit(trunk):
            page = self._page(trunk)
            following, count = struct.unpack(">2I", page[:8])
            count = min(count, (self._size - 8) // 4)
            yield self._within(trunk, 8 + 4 * count, self._size)
            for leaf in struct.unpack(f">{count}I", page[8 : 8 + 4 * count]):
                if self._first_visit(leaf):
                    yield self._within(leaf, 0, self._size)
            trunk = following

    def _tree_page(self, number: int, waiting: list[int]) -> Iterator[tuple[int, int]]:
        page, start = self._page(number), 100 if number == 1 else 0
        kind = page[start]
        if kind not in (2, 5, 10, 13):
            yield self._within(number, 0, self._size)
            return
        block, cells, content = struct.unpack(">3H", page[start + 1 : start + 7])
        inner = kind in (2, 5)
        pointers = start + (12 if inner else 8)
        if inner:
            waiting.append(int.from_bytes(page[start + 8 : start + 12], "big"))
        yield self._within(number, pointers + 2 * cells, content or 65536)
        while 0 < block <= self._usable - 4:
            following, size = struct.unpack(">2H", page[block : block + 4])
            yield self._within(number, block + 4, block + size)
            if following <= block:
                break
            block = following
        for index in range(cells):
            at = pointers + 2 * index
            yield from self._cell(page, int.from_bytes(page[at : at + 2], "big"), kind, waiting)

    def _cell(
        self, page: bytes, at: int, kind: int, waiting: list[int]
    ) -> Iterator[tuple[int, int]]:
        if kind in (2, 5):
            waiting.append(int.from_bytes(page[at : at + 4], "big"))
            at += 4
        if kind == 5:
            return
        payload, at = _varint(page, at)
        if kind == 13:
            _, at = _varint(page, at)
        usable = self._usable
        least = (usable - 12) * 32 // 255 - 23
        most = usable - 35 if kind == 13 else (usable - 12) * 64 // 255 - 23
        if payload <= most:
            return
        local = least + (payload - least) % (usable - 4)
        local = local if local <= most else least
        rest = payload - local
        chained = int.from_bytes(page[at + local : at + local + 4], "big")
        while rest > 0 and self._first_visit(chained):
            overflow = self._page(chained)
            if rest < usable - 4:
                yield self._within(chained, 4 + rest, usable)
            rest -= usable - 4
            chained = int.from_bytes(overflow[:4], "big")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for step in range(9):
        byte = data[at + step]
        if step == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + step + 1
    raise IndexError("varint")
