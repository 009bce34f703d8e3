"""Residue on the raw blocks of a disk: needs root and loop devices, and is skipped without."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_unlearn.retrieval import Store
from llm_unlearn.retrieval.bench import device, residue
from llm_unlearn.retrieval.bench.choose import choose
from llm_unlearn.retrieval.keyring import SLOT_BYTES

WHY_NOT = device.impossible()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no ext4 image can be mounted: {WHY_NOT}")


def material(store: Store, names: list[str]) -> dict[str, list[list[bytes]]]:
    """By kind, for each document: its words, vector, data key, wrapped key, ciphertexts."""
    vault = store.vault
    (slots,) = vault.keyring.directory.glob("slots-*")
    wrapped = slots.read_bytes()
    found: dict[str, list[list[bytes]]] = {
        kind: [] for kind in ("texts", "vectors", "keys", "wrapped", "sealed")
    }
    for name in names:
        record = vault.find(vault.mark("id", name))
        assert record is not None
        found["texts"].append([vault.read(record, "body"), name.encode() * 8])
        found["vectors"].append([vault.read(record, "vectors")[-4 * store.embedder.dim :]])
        found["keys"].append([vault.keyring.key(record.slot)])
        found["wrapped"].append([wrapped[record.slot * SLOT_BYTES :][:60]])
        with vault.database.reading() as connection:
            query = "SELECT sealed FROM parts WHERE handle=?"
            parts = connection.execute(query, (record.handle,)).fetchall()
        found["sealed"].append([part[:32] for (part,) in parts])
    return found


def test_a_hundred_deleted_documents_leave_no_block_that_still_decrypts(
    tmp_path: Path, tools: Any
) -> None:
    names = [f"doc-{i}" for i in range(0, 400, 4)]
    image = [tmp_path / "image"]
    with device.mounted(tmp_path, 32) as root:
        store = Store.create(root / "store", root / "keys", tools.Embedder(), tools.settings)
        store.add(tools.document(i) for i in range(300))
        store.add(tools.document(i) for i in range(300, 420))
        first = material(store, names)
        old_header = (root / "keys" / "keyring.json").read_bytes()
        old_root = (root / "keys" / "root.key").read_bytes()[64:128]
        old_kek = store.vault.keyring._state.kek
        os.sync()
        # the search sees what is there: otherwise finding nothing would mean nothing
        assert device.remaining(first["wrapped"], image) == 100
        assert device.remaining(first["sealed"], image) == 100
        assert device.remaining([[old_root]], image) == 1
        store.vault.keyring.rotate()
        second = material(store, names)
        os.sync()
        assert device.remaining(second["wrapped"], image) == 100
        copy = tmp_path / "copy"
        shutil.copytree(root / "store", copy)
        for name in names[:50]:
            store.delete(id=name)
        for name in names[50:]:
            store.update(tools.document(int(name[4:]) + 1000).model_copy(update={"id": name}))
        store.add(tools.document(i) for i in range(500, 520))
        store.close()
    for kind in ("texts", "vectors", "keys"):
        assert device.remaining(first[kind], image) == 0, kind
    for when in (first, second):
        assert device.remaining(when["wrapped"], image) == 0
    # what an old wrapping would need, had one survived: the keys above it
    assert device.remaining([[old_kek], [old_root[16:48]]], image) == 0
    assert device.remaining([[old_header[i : i + 32]] for i in range(150, 230, 8)], image) == 0


def test_the_bench_finds_what_another_store_leaves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"{i:08d} {rng.bytes(320).hex()}"[:640] for i in range(40)]
    peers, _ = choose(["ours", "faiss-flat"])
    ours, flat = (
        residue.on_device(peers[name], texts, vectors, range(0, 40, 4), tmp_path)
        for name in ("ours", "faiss-flat")
    )
    assert ours == residue.Left(copy=0, texts=0, vectors=0, keys=0)
    assert flat.vectors > 0
    assert flat.copy == 10
    assert flat.keys is None
