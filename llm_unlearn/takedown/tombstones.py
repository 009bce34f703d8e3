"""Tombstones: keyed marks that stop a removed text from being ingested again.

Guarantees: the table holds no text and no plain hash, only 16-byte HMAC-SHA256 marks under a secret
of the keyring, which lies outside the workspace; without it they tell nothing but their number. A
removed text is refused whatever was done to its case, white space, punctuation or Unicode form, and
so is every document of a subject that a request named. Tombstones decide what is accepted and what
the chat refuses, never what a search returns.

The names of a removed subject (as the request calls it, and its other names) are marked too, so that
a question about it is not answered from what is known of somebody else: see `named`. A name of one
word is that word; of a longer one the whole counts, also with the last word first; of one of three
words or more each run one shorter, and first with last word, unless such a part begins or ends in an
article or the like (`_SMALL`). Surnames alone, misspelt names and descriptions are not recognised.

Does not guarantee: to refuse near-duplicates always. They are found by MinHash (Broder 1997) over
runs of `_GRAM` letters, in `_BANDS` bands of `_ROWS` minima (banding: Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, section 3.4), and refused when `_HITS` bands agree. For Jaccard index s
a band agrees with probability s**_ROWS, so a document is refused with probability

    1 - (1 - s**5)**128 - 128 * s**5 * (1 - s**5)**127

which `chance` gives: 0.9996 at s = 0.6, 0.91 at 0.5, 0.38 at 0.4, 0.04 at 0.3, 0.0008 at 0.2 and
0.000001 at 0.1; docs/closure.md has measured rates. Excerpts are not stopped, nor texts of fewer
than `_LEAST` letters that were changed: a near mark of a short text could be guessed.

Someone who holds the secret can test guesses: one of a whole text, or of the five runs of letters
behind a band; docs/closure.md gives the rate.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.documents import Document, normalise
from llm_unlearn.retrieval.crypto import keyed_mark
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.keyring import Keyring
from llm_unlearn.takedown.overlap import fold
from llm_unlearn.takedown.request import Request

_GRAM: Final = 5
_ROWS: Final = 5
_BANDS: Final = 128
_HITS: Final = 2
_LEAST: Final = 60
_SHORT: Final = 3  # letters of the shortest name of one word that is recognised
_RUN: Final = 6  # words of the longest run that a name is recognised by
_VARIABLES: Final = 10_000  # marks looked up in one statement
_SMALL: Final = frozenset(
    re.findall(
        r"\w+",
        "a al an and as at by da das de del der des di do dos du e el en et for from i il in la "
        "las le les lo los of on or the to u un una und une van von with y",
    )
)
_BLOCK: Final = 1024  # letter runs hashed at a time: bounds memory at 5 MB

# The key's columns come first: SQLite 3.40 otherwise reports NULL values in a sound table.
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS tombstones (
  mark BLOB NOT NULL, request BLOB NOT NULL, text BLOB NOT NULL, kind TEXT NOT NULL,
  PRIMARY KEY (mark, request, text)
) WITHOUT ROWID
"""


class Tombstones:
    """The tombstones of one workspace.

    Args:
        database: of the workspace, with the table made by `create_table`.
        keyring: its secret "tombstones" keys every mark.
    """

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._secret = keyring.secret("tombstones")

    @staticmethod
    def create_table(database: Database) -> None:
        """Make the table if it is not there.

        Its key is (mark, request, text): two requests may name the same text, and lifting one
        leaves the other. `text` groups the bands of one text and is its whole-text mark.
        """
        with database.transaction() as connection:
            connection.execute(_TABLE)

    def add(
        self, documents: Iterable[Document], request: Request, mark: bytes, *, whole: bool = True
    ) -> None:
        """Refuse these documents, the request's passage, and the subject it names, from now on.

        Doing it again changes nothing. Joins a transaction that is open.

        Args:
            documents: what is being removed.
            request: who asked for what.
            mark: what the caller knows the request by; `lift` takes it.
            whole: the request was accepted in whole; else neither passage, subject nor names are refused,
                since some of it stays.
        """
        texts = [document.content for document in documents]
        if request.text and whole:
            texts.append(request.text)
        rows = [row for text in texts for row in self._rows(text, mark)]
        for name in (request.subject, *request.names) if whole else ():
            marks = [self._name(run) for run in name_runs(name)] if name else []
            rows += [(found, "name", mark, found) for found in marks]
        if request.subject and whole:
            subject = self._subject(request.subject)
            rows.append((subject, "subject", mark, subject))
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO tombstones (mark, kind, request, text) VALUES (?, ?, ?, ?)",
                rows,
            )

    def refuses(self, document: Document) -> str | None:
        """Why a document may not come in, in words that quote nothing; None when it may."""
        with self._database.reading() as connection:
            if connection.execute("SELECT 1 FROM tombstones LIMIT 1").fetchone() is None:
                return None
        whole = self._whole(document.content)
        for mark, what in ((self._subject(document.subject), "subject"), (whole, "text")):
            with self._database.reading() as connection:
                found = connection.execute(
                    "SELECT request FROM tombstones WHERE mark = ? AND kind = ?", (mark, what)
                ).fetchone()
            if found is not None:
                return f"its {what} was taken down (request mark {found[0].hex()})"
        bands = list(self._bands(document.content))
        if not bands:
            return None
        places = ",".join("?" * len(bands))
        with self._database.reading() as connection:
            hits = Counter(
                connection.execute(
                    f"SELECT request, text FROM tombstones WHERE mark IN ({places}) "  # noqa: S608
                    "AND kind = 'near'",
                    bands,
                ).fetchall()
            )
        near = sorted(pair for pair, count in hits.items() if count >= _HITS)
        if near:
            return f"it is much like a text that was taken down (request mark {near[0][0].hex()})"
        return None

    def named(self, text: str) -> frozenset[bytes]:
        """Marks of the removed subjects' names that a text holds.

        The same work is done whether or not anything was ever removed.
        """
        words = fold(text).words
        runs = {words[i : i + n] for n in range(1, _RUN + 1) for i in range(len(words) - n + 1)}
        marks = [self._name(run) for run in runs]
        found: set[bytes] = set()
        for start in range(0, len(marks), _VARIABLES):
            block = marks[start : start + _VARIABLES]
            places = ",".join("?" * len(block))
            with self._database.reading() as connection:
                rows = connection.execute(
                    f"SELECT mark FROM tombstones WHERE mark IN ({places}) "  # noqa: S608
                    "AND kind = 'name'",
                    block,
                ).fetchall()
            found.update(row[0] for row in rows)
        return frozenset(found)

    def lift(self, mark: bytes) -> int:
        """Accept again what a request had removed (counter-notice); return how many marks went."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM tombstones WHERE request = ?", (mark,)).rowcount

    def __len__(self) -> int:
        """How many marks there are."""
        with self._database.reading() as connection:
            return int(connection.execute("SELECT count(*) FROM tombstones").fetchone()[0])

    def _rows(self, text: str, request: bytes) -> Iterator[tuple[bytes, str, bytes, bytes]]:
        whole = self._whole(text)
        yield whole, "text", request, whole
        for band in self._bands(text):
            yield band, "near", request, whole

    def _whole(self, text: str) -> bytes:
        letters = fold(text).letters
        return keyed_mark(self._secret, "text", letters or "\0" + normalise(text))

    def _subject(self, name: str) -> bytes:
        return keyed_mark(self._secret, "subject", normalise(name))

    def _name(self, run: Sequence[str]) -> bytes:
        return keyed_mark(self._secret, "name", " ".join(run))

    def _bands(self, text: str) -> Iterator[bytes]:
        """One mark for each band of minima, none for a short text."""
        letters = fold(text).letters
        if len(letters) < _LEAST:
            return
        grams = sorted({letters[i : i + _GRAM] for i in range(len(letters) - _GRAM + 1)})
        key = self._secret
        values = np.array(
            [
                int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8, key=key).digest())
                for gram in grams
            ],
            dtype=np.uint64,
        )
        factor, offset = self._permutations
        least = np.full(_BANDS * _ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            # (bands * rows, block): arithmetic modulo 2**64 is meant
            np.minimum(least, (factor * block + offset).min(axis=1), out=least)
        for number, band in enumerate(least.reshape(_BANDS, _ROWS)):
            yield keyed_mark(self._secret, "near", number.to_bytes(2) + band.tobytes())

    @cached_property
    def _permutations(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Odd factors and offsets (bands * rows, 1) of the hash functions, from the secret."""
        count = _BANDS * _ROWS
        stream = hashlib.shake_256(b"minhash\0" + self._secret).digest(16 * count)
        numbers = np.frombuffer(stream, dtype="<u8").reshape(2, count, 1).astype(np.uint64)
        return numbers[0] | np.uint64(1), numbers[1]


def name_runs(name: str) -> set[tuple[str, ...]]:
    """The runs of folded words by which a name is recognised (see the module).

    >>> sorted(" ".join(run) for run in name_runs("Anna Maria Lindqvist"))
    ['anna lindqvist', 'anna maria', 'anna maria lindqvist', 'lindqvist anna maria', 'maria lindqvist']
    >>> sorted(" ".join(run) for run in name_runs("The Great War"))
    ['great war', 'the great war', 'war the great']
    """
    words = fold(name).words
    whole = min(len(words), _RUN)
    runs = {words[i : i + whole] for i in range(len(words) - whole + 1)}
    if 1 < len(words) <= _RUN:
        runs.add((words[-1], *words[:-1]))  # as in "Lindqvist, Anna"
    if len(words) > 2:
        parts = {words[i : i + whole - 1] for i in range(len(words) - whole + 2)}
        parts.add((words[0], words[-1]))
        runs |= {run for run in parts if not {run[0], run[-1]} & _SMALL}
    return {run for run in runs if len(run) > 1 or len("".join(run)) >= _SHORT}


def chance(jaccard: float) -> float:
    """Probability that a document of this Jaccard index with a removed text is refused."""
    band = jaccard**_ROWS
    return 1 - sum(
        math.comb(_BANDS, hits) * band**hits * (1 - band) ** (_BANDS - hits)
        for hits in range(_HITS)
    )
