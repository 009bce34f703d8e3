"""What is left of a hundred deleted documents: in a copy made before, and on the blocks of a disk.

Guarantees: the same documents, deletions and search for every store, on a file system made for it
alone. Kept apart from the timing, since a loop device is slow in its own way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_unlearn.errors import KeyDestroyed
from llm_unlearn.retrieval.bench.device import mounted, remaining
from llm_unlearn.retrieval.bench.peers import CHUNKS, WIDTH, Make, Ours
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.embedding import Floats
from llm_unlearn.retrieval.keyring import SLOT_BYTES, Keyring
from llm_unlearn.retrieval.vault import Vault

_WRAPPED = 60  # bytes of a key slot that are not padding


@dataclass(frozen=True)
class Left:
    """Of the deleted documents, how many have something left, by where and what."""

    copy: int  # readable in the copy made before, with everything that exists now
    texts: int  # in clear, on the device
    vectors: int
    keys: int | None  # data keys in clear or wrapped, root or key-encryption keys; None: has none


def on_device(
    make: Make, texts: Sequence[str], vectors: Floats, gone: Sequence[int], folder: Path | None
) -> Left:
    """Fill a store on a disk of its own, copy it, delete `gone` one by one, look at the disk.

    Args:
        make: the store.
        texts, vectors: as `Peer.load` takes them; no two rows may be equal.
        gone: the documents to delete.
        folder: where the image is made; default a temporary directory.

    Raises:
        subprocess.CalledProcessError: see `device.impossible`.
    """
    # room for the rows twice over, their texts, logs, and graphs
    size = 32 + 10 * vectors.nbytes // (1 << 20)
    clear = [[texts[d][i * WIDTH :].encode() for i in range(CHUNKS)] for d in gone]
    rows = [[vectors[d * CHUNKS + i].tobytes() for i in range(CHUNKS)] for d in gone]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        copy = place / "copy"
        keys: list[list[bytes]] = []
        unreadable = 0
        with mounted(place, size) as root:
            peer = make(root, vectors.shape[1])
            try:
                peer.load(texts, vectors)
                os.sync()
                shutil.copytree(root, copy, ignore=shutil.ignore_patterns("lost+found", "keys"))
                if isinstance(peer, Ours):
                    keys = _keys(peer, gone)
                    os.sync()
                for document in gone:
                    peer.delete([document])
                if isinstance(peer, Ours):
                    unreadable = _unreadable(copy / "store", root / "keys", gone)
            finally:
                peer.close()
            os.sync()
        files = [path for path in copy.rglob("*") if path.is_file()]
        both = [[*a, *b] for a, b in zip(clear, rows, strict=True)]
        readable = len(gone) - unreadable if keys else 0
        image = [place / "image"]
        return Left(
            max(readable, remaining(both, files)),
            remaining(clear, image),
            remaining(rows, image),
            remaining(keys, image) if keys else None,
        )


def _keys(peer: Ours, gone: Sequence[int]) -> list[list[bytes]]:
    """The data key of each document, in the clear and as it is wrapped."""
    vault = peer.store.vault
    (slots,) = vault.keyring.directory.glob("slots-*")
    wrapped = slots.read_bytes()
    found = []
    for document in gone:
        record = vault.find(vault.mark("id", str(document)))
        assert record is not None
        start = record.slot * SLOT_BYTES
        found.append([vault.keyring.key(record.slot), wrapped[start : start + _WRAPPED]])
    return found


def _unreadable(copy: Path, keys: Path, gone: Sequence[int]) -> int:
    """How many of `gone` the copy still lists and the current keys no longer open."""
    count = 0
    with Database.open(copy / "workspace.db", readonly=True) as database:
        keyring = Keyring.open(keys)
        vault = Vault(database, keyring)
        for document in gone:
            record = vault.find(vault.mark("id", str(document)))
            assert record is not None
            try:
                vault.read(record, "body")
            except KeyDestroyed:
                count += 1
        keyring.close()
    return count
