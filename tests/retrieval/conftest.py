"""A deterministic embedder without a model, and vaults and stores to try things on."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from llm_unlearn.documents import Document
from llm_unlearn.retrieval import Keyring, Store, StoreSettings
from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.vault import Vault

faiss.omp_set_num_threads(1)  # its idle threads spin, which slows a shared machine

SECRETS = {"ids": bytes(range(32))}


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


class HashingEmbedder:
    """A bag of hashed character trigrams, normalised: near texts get near vectors."""

    digest = "hashing-trigrams"

    def __init__(self, dim: int = 32) -> None:
        self.dim = dim
        self.tokenizer = byte_tokenizer()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self.dim), np.float64)
        for row, text in zip(rows, texts, strict=True):
            padded = f"  {text.casefold()} "
            for i in range(len(padded) - 2):
                digest = hashlib.blake2b(padded[i : i + 3].encode(), digest_size=4).digest()
                row[digest[0] % self.dim] += 1.0 if digest[1] & 1 else -1.0
            row[0] += 0.01  # never all zero
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def open_vault(folder: Path, *, create: bool = False, readonly: bool = False) -> Vault:
    """A vault with fixed `ids` secret, so that two vaults give the same marks."""
    keys = folder / "keys"
    if create:
        folder.mkdir(exist_ok=True)
    keyring = Keyring.create(keys, secrets=SECRETS) if create else Keyring.open(keys)
    database = Database.open(folder / "workspace.db", create=create, readonly=readonly)
    return Vault(database, keyring)


def close_vault(vault: Vault) -> None:
    vault.database.close()
    vault.keyring.close()


SETTINGS = StoreSettings(chunk_tokens=40, chunk_overlap=8)


def open_store(folder: Path, *, create: bool = False, settings: StoreSettings = SETTINGS) -> Store:
    """A store on such a vault, swept as a writer does."""
    vault = open_vault(folder, create=create)
    vault.sweep()
    return Store(vault, HashingEmbedder(), settings)


def close_store(store: Store) -> None:
    store.close()
    close_vault(store.vault)


WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "islet",
    "jetty",
    "knoll",
    "larch",
    "meadow",
]


def make_document(number: int, subject: str = "", words: int = 24) -> Document:
    """A document whose text its number decides."""
    rng = random.Random(number)
    text = " ".join(rng.choice(WORDS) for _ in range(words))
    sentence = f"Record {number} of the {rng.choice(WORDS)} says: {text}. It ends with {number}."
    return Document(id=f"doc-{number}", text=sentence, subject=subject, source=f"src-{number % 3}")


class Tools:
    """What tests of several files share (pytest loads this file, tests do not import it)."""

    Embedder = HashingEmbedder
    settings = SETTINGS
    open_vault = staticmethod(open_vault)
    close_vault = staticmethod(close_vault)
    open_store = staticmethod(open_store)
    close_store = staticmethod(close_store)
    document = staticmethod(make_document)
    tokenizer = staticmethod(byte_tokenizer)

    @staticmethod
    def soak(quick: int, times: int = 1) -> int:
        """How often to repeat: `quick`, or `times` times SOAK when that is set (`make soak`)."""
        wanted = os.environ.get("SOAK")
        return quick if wanted is None else times * int(wanted)

    @staticmethod
    def child(script: str, *arguments: object) -> subprocess.Popen[str]:
        """Start another Python that sees this file's names and `arguments` (strings) in `argv`."""
        start = f"import runpy; globals().update(runpy.run_path({__file__!r})); import sys\n"
        command = [sys.executable, "-c", start + "argv = sys.argv[1:]\n" + script]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


@pytest.fixture
def embedder() -> HashingEmbedder:
    return HashingEmbedder()


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    made = open_vault(tmp_path / "vault", create=True)
    yield made
    close_vault(made)


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Makes empty stores by name in the test's folder; all are closed at the end."""
    made: list[Store] = []

    def make(name: str = "store", settings: StoreSettings = SETTINGS) -> Store:
        store = open_store(tmp_path / name, create=True, settings=settings)
        made.append(store)
        return store

    yield make
    for store in made:
        close_store(store)


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()
