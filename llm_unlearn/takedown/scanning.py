"""The residue scan at the end of a takedown, in the words of the receipt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.documents import Document
from llm_unlearn.errors import NotFound
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import Survey, survey
from llm_unlearn.opened import Opened
from llm_unlearn.takedown.receipt import Scan


def look_for(
    opened: Opened,
    *,
    documents: Sequence[Document],
    tokens: Sequence[Sequence[int]],
    vectors: Sequence[NDArray[np.float32]] = (),
    keys: Sequence[bytes] = (),
) -> tuple[Needles, Survey]:
    """Search every file of the workspace and of the key directory for what was removed.

    Passages that a retained document also holds are left out, since finding them proves nothing.

    Args:
        tokens: token ids of each training example.
        vectors: (chunks, dim) of each document.
        keys: the destroyed data keys, raw.

    Returns:
        What was looked for, with what could not be, and what was found where.

    Raises:
        NotFound: there is no file to scan.
    """
    retained = (
        opened.document(record).content
        for record in opened.vault.records(states=("live", "held"))
        if record.fate != "refused"
    )
    needles = Needles.build(
        [document.content for document in documents],
        tokens=tokens,
        vectors=np.concatenate(vectors) if vectors else None,
        keys=keys,
        background=retained,
    )
    places = [opened.path, opened.keyring.directory]
    found = survey(places, needles)
    if not found.files:
        raise NotFound(f"Nothing to scan in {opened.path}.", "Was it moved?")
    return needles, found


def scan_for(
    opened: Opened,
    *,
    documents: Sequence[Document],
    tokens: Sequence[Sequence[int]],
    vectors: Sequence[NDArray[np.float32]],
    keys: Sequence[bytes],
) -> Scan:
    """`look_for`, as the receipt tells it.

    Raises:
        NotFound: there is no file to scan.
    """
    needles, found = look_for(
        opened, documents=documents, tokens=tokens, vectors=vectors, keys=keys
    )
    searched = [
        f"text of {len(documents)} documents as UTF-8, UTF-16, UTF-32, JSON, Base64 and "
        "hex, in file names and contents, compressed streams included",
        f"token ids of {len(tokens)} training examples, "
        f"{sum(len(rows) for rows in vectors)} vectors, {len(keys)} data keys",
        "every file of the workspace and of its key directory",
    ]
    if needles.dropped:
        searched.append(
            f"{needles.dropped} of {needles.dropped + needles.fragments} text fragments were left "
            "out: retained documents hold them too"
        )
    if needles.unsearchable:
        searched.append(f"{len(needles.unsearchable)} items were too short to be searched for")
    if found.unsearched:
        searched.append(f"{len(found.unsearched)} files or streams could not be looked into")
    return Scan(
        files=found.files,
        bytes=found.bytes,
        findings=len(found.findings),
        searched=tuple(searched),
    )
