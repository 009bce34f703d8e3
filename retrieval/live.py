"""The live documents of a vault in memory, kept up to date: index, access attributes, metadata.

Guarantees: after `refresh`, what is here is exactly what the vault held at one moment after the
call; a record whose key is destroyed is not here even while its row still stands. It is not
thread-safe and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import Damaged
from llm_unlearn.retrieval import parts
from llm_unlearn.retrieval.index import Entry, Kind, VectorIndex, exact_scores
from llm_unlearn.retrieval.lexical import Lexical
from llm_unlearn.retrieval.signs import Floats
from llm_unlearn.retrieval.vault import Record, Vault
from llm_unlearn.retrieval.visibility import Attribute, Test, Wanted, combine
from llm_unlearn.retrieval.where import attributes

_LOAD = 2048  # documents decrypted at a time
Found = tuple[float, Entry, int]
Tests = Mapping[str, Test | Wanted]  # by attribute; "handle" is always a set


@dataclass(frozen=True, slots=True)
class Note:
    """What is kept beside a document's rows. `spans` (n, 2): characters of each chunk."""

    record: Record
    changed: int  # the vault version that wrote the record
    meta: parts.Meta
    spans: NDArray[np.uint32]


class LiveIndex:
    """The live records of one fate.

    Args:
        vault: to read from.
        fate: which records.
        dim: length of the vectors.
        kind: of the index.
        default_group: who may see a document without groups.
    """

    def __init__(self, vault: Vault, fate: str, dim: int, kind: Kind, default_group: str) -> None:
        self._vault = vault
        self._fate = fate
        self._default = (default_group,)
        self._change = -1
        self._version = -1
        self._keyless: set[bytes] = set()  # live rows whose key is destroyed: deleted already
        self._lexical: Lexical | None = None  # made by the first search by words
        self.index = VectorIndex(dim, kind)
        names = ("acl", "subject", "source", "license", "tags", "date", "metadata")
        self.attributes = {name: Attribute() for name in names}

    def refresh(self) -> None:
        """Become what the vault holds now; cheap when nothing was committed since.

        Raises:
            Damaged: a live record does not decrypt, or the rows are not what was written.
        """
        change = self._vault.database.change()
        while change != self._change:
            version = self._vault.version()
            if version != self._version:
                self._apply()
            # Only a state read whole, with no commit in between, counts as seen.
            after = self._vault.database.change()
            if after == change:
                self._change, self._version = change, version
            change = after

    def moved(self) -> bool:
        """Whether anything was committed since the last `refresh`."""
        return self._vault.database.change() != self._change

    def search(self, query: Floats, k: int, tests: Tests) -> list[Found]:
        """The `k` chunks nearest to a unit vector whose document passes every test."""
        return self.index.search(query, k, self._mask(tests))

    def search_words(self, text: str, query: Floats, k: int, tests: Tests) -> list[Found]:
        """The `k` best chunks by BM25, each with its cosine; the first call reads every text.

        Raises:
            Damaged: a text does not decrypt.
        """
        if self._lexical is None:
            self._lexical = Lexical()
            entries = list(self.index.entries())
            for start in range(0, len(entries), _LOAD):
                self._read_words(entries[start : start + _LOAD])
        mask = self._mask(tests)
        places = self._lexical.search(text, k, None if mask is None else self._visible(mask))
        found = []
        for _, (handle, chunk) in places:
            entry = self.index.entry(handle)
            row = self.index.vectors(entry)[chunk : chunk + 1]
            found.append((float(exact_scores(row, query)[0]), entry, chunk))
        return found

    def visible(self, tests: Tests) -> list[Entry]:
        """The documents that pass every test."""
        mask = self._mask(tests)
        return [e for e in self.index.entries() if mask is None or mask[e.number]]

    def _mask(self, tests: Tests) -> NDArray[np.bool_] | None:
        rest = {name: test for name, test in tests.items() if name != "handle"}
        mask = combine(self.attributes, rest, len(self.index.numbers))
        if "handle" not in tests:
            return mask
        chosen = tests["handle"]
        assert isinstance(chosen, frozenset)
        named = np.zeros(len(self.index.numbers), np.bool_)
        named[[self.index.entry(handle).number for handle in chosen if handle in self.index]] = True
        return named if mask is None else named & mask

    def _visible(self, mask: NDArray[np.bool_]) -> Callable[[bytes], bool]:
        def test(handle: bytes) -> bool:
            return bool(mask[self.index.entry(handle).number])

        return test

    def _read_words(self, entries: Sequence[Entry]) -> None:
        assert self._lexical is not None
        bodies = self._vault.read_live([entry.note.record for entry in entries], "body")
        for entry, body in zip(entries, bodies, strict=True):
            text = "" if body is None else parts.unpack_body(body).content
            spans = entry.note.spans.tolist()
            self._lexical.add(entry.handle, [text[start:end] for start, end in spans])

    def drop_destroyed(self, entries: Collection[Entry]) -> bool:
        """Take out those whose key is gone while their row still stands; whether any was."""
        slots = {entry.handle: entry.note.record.slot for entry in entries}
        keys = self._vault.keyring.keys(list(slots.values()))
        gone = [handle for handle, key in zip(slots, keys, strict=True) if key is None]
        self._remove(gone)
        return bool(gone)

    def canonical(self) -> Iterator[bytes]:
        """Records, parts and index rows of every document, by handle; nothing of their history."""
        for entry in self.index.entries():
            record: Record = entry.note.record
            yield b"".join((record.handle, record.subject, record.source, record.content))
            yield f"{record.fate} {record.generation}".encode()
            for name in self._vault.part_names(record):
                data = self._vault.read(record, name)
                yield name.encode() + len(data).to_bytes(8, "little") + data
            yield self.index.vectors(entry).tobytes() + self.index.codes(entry)

    def include(self, handles: Collection[bytes]) -> None:
        """Count records of this fate as live that are not; only for an index that is thrown away."""
        found = self._vault.find_many(list(handles)).values()
        fresh = {r.handle: 0 for r in found if r.fate == self._fate and r.handle not in self.index}
        self._replace(fresh, ())

    def forget(self, handles: Collection[bytes]) -> None:
        """Take out documents that the caller has just deleted: sooner than `refresh` would."""
        self._remove([handle for handle in handles if handle in self.index])

    def _apply(self) -> None:
        if self._version < 0:
            self._vault.verify_rows()
        fresh, gone, live = self._vault.changes(self._fate, self._version)
        self._replace(fresh, gone)
        if len(self.index) + len(self._keyless) != live or self._keyless:
            # Rows were removed by someone else: compare everything.
            versions = self._vault.versions(self._fate)
            stale = {
                entry.handle
                for entry in self.index.entries()
                if versions.get(entry.handle) != entry.note.changed
            }
            missing = {h: v for h, v in versions.items() if h not in self.index or h in stale}
            self._keyless.clear()
            self._replace(missing, stale)

    def _replace(self, fresh: Mapping[bytes, int], gone: Collection[bytes]) -> None:
        self._remove([handle for handle in (*gone, *fresh) if handle in self.index])
        handles = sorted(fresh)
        for start in range(0, len(handles), _LOAD):
            self._load(handles[start : start + _LOAD], fresh)
            if start == 0 and len(handles) > _LOAD:
                # Handles are random, so the first documents tell how many chunks the rest have.
                self.index.reserve(int(1.05 * self.index.chunks * len(handles) / _LOAD))

    def _load(self, handles: Sequence[bytes], versions: Mapping[bytes, int]) -> None:
        change = self._vault.database.change()
        found = self._vault.find_many(handles)
        records = [found[handle] for handle in handles if handle in found]
        try:
            found_parts = self._vault.read_parts(records, ("meta", "vectors"))
        except Damaged:
            if self._vault.database.change() == change:
                raise
            return  # a writer came in between; `refresh` looks again
        items: list[tuple[bytes, object, Floats]] = []
        for record, both in zip(records, found_parts, strict=True):
            if both is None:
                self._keyless.add(record.handle)
                continue
            meta, packed = both
            spans, vectors = parts.unpack_vectors(packed)
            if vectors.shape[1] != self.index.dim:
                raise Damaged(f"a record has vectors of length {vectors.shape[1]}.")
            # A view would keep the whole part in memory.
            note = Note(record, versions[record.handle], parts.unpack_meta(meta), spans.copy())
            items.append((record.handle, note, vectors))
        self.index.add(items)
        entries = [self.index.entry(handle) for handle, _, _ in items]
        for entry in entries:
            meta = entry.note.meta
            groups = frozenset(meta.acl or self._default)
            self.attributes["acl"].put(entry.number, groups)
            record = entry.note.record
            for name, value in attributes(meta, record.subject, record.source).items():
                self.attributes[name].put(entry.number, value)
        if self._lexical is not None:
            self._read_words(entries)

    def _remove(self, handles: Sequence[bytes]) -> None:
        """Take out documents, all of which must be here."""
        for handle in handles:
            for attribute in self.attributes.values():
                attribute.drop(self.index.entry(handle).number)
            if self._lexical is not None:
                self._lexical.remove(handle)
        self.index.remove(handles)
