"""Nothing of a deleted document is left in any file, and old copies of the store are unreadable."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_unlearn.errors import KeyDestroyed
from llm_unlearn.retrieval import Store
from llm_unlearn.retrieval.keyring import SLOT_BYTES

SECRET_WORDS = "xylograph quincunx vellichor"


def needles(store: Store, name: str) -> list[bytes]:
    """Text, metadata, vectors in both precisions, keys in the clear and wrapped, of a document."""
    record = store.vault.find(store.vault.mark("id", name))
    assert record is not None
    found = [SECRET_WORDS.encode(), SECRET_WORDS.encode("utf-16-le"), name.encode(), b"subject-zx"]
    packed = store.vault.read(record, "vectors")
    rows = np.frombuffer(packed[-store.embedder.dim * 4 :], np.float32)
    for precision in (np.float32, np.float16, np.float64):
        data = rows.astype(precision).tobytes()
        pieces = [data[start : start + 16] for start in range(0, len(data), 16)]
        found += [piece for piece in pieces if len(set(piece)) > 8]  # others occur by chance
    slots = next(store.vault.keyring.directory.glob("slots-*")).read_bytes()
    wrapped = slots[record.slot * SLOT_BYTES :][:60]
    with store.vault.database.reading() as connection:
        query = "SELECT sealed FROM parts WHERE handle=?"
        sealed = [row[0][:32] for row in connection.execute(query, (record.handle,))]
    assert len(sealed) == 3
    return [*found, store.vault.keyring.key(record.slot), wrapped, *sealed]


def found_in(folder: Path, wanted: list[bytes]) -> list[tuple[str, int]]:
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(name.endswith(".db") for name in files)
    return [(name, i) for name, data in files.items() for i, n in enumerate(wanted) if n in data]


@pytest.mark.parametrize("after", ["delete", "update", "subject"])
def test_no_file_holds_anything(store: Store, tools: Any, tmp_path: Path, after: str) -> None:
    store.add(tools.document(i) for i in range(100))
    secret = tools.document(1).model_copy(
        update={"id": "secret-id", "text": SECRET_WORDS * 40, "subject": "subject-zx"}
    )
    store.add([secret, secret.model_copy(update={"id": "other"})])
    store.add(tools.document(i) for i in range(100, 130))
    store.search(SECRET_WORDS, groups=["staff"])
    wanted = needles(store, "secret-id")
    in_clear = len(wanted) - 4  # wrapped key and three ciphertexts are there while it lives
    assert {i for _, i in found_in(tmp_path, wanted)} == set(range(in_clear, len(wanted)))

    copy = tmp_path.parent / f"{tmp_path.name}-copy"
    shutil.copytree(tmp_path, copy)
    if after == "delete":
        store.delete(id="secret-id")
    elif after == "subject":
        assert store.delete(subject="subject-zx") == 2
    else:
        store.update(secret.model_copy(update={"text": "harmless now"}))
    assert found_in(tmp_path, wanted) == []
    tools.close_store(store)
    assert found_in(tmp_path, wanted) == []
    again = tools.open_store(tmp_path / "store")
    assert found_in(tmp_path, wanted) == []
    tools.close_store(again)

    # The copy made before, opened with the keys that exist now: the record is there, its key not.
    keys = copy / "store" / "keys"
    shutil.rmtree(keys)
    shutil.copytree(tmp_path / "store" / "keys", keys)
    old = tools.open_vault(copy / "store")
    record = old.find(old.mark("id", "secret-id"))
    assert record is not None
    with pytest.raises(KeyDestroyed):
        old.read(record, "body")
    tools.close_vault(old)
    shutil.rmtree(copy)
