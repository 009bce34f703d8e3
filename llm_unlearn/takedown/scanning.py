"""The residue scan at the end of a takedown, in the words of the receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_unlearn.errors import NotFound
from llm_unlearn.eval.needles import Needles
from llm_unlearn.eval.residue import survey
from llm_unlearn.opened import Opened
from llm_unlearn.takedown.receipt import Scan

if TYPE_CHECKING:
    from llm_unlearn.takedown.evidence import Evidence


def scan_for(opened: Opened, evidence: Evidence) -> Scan:
    """Search every file of the workspace and of the key directory for what was removed.

    Passages that a retained document also holds are left out, since finding them proves nothing.
    """
    retained = (
        opened.document(record).content
        for record in opened.vault.records(states=("live", "held"))
        if record.fate != "refused"
    )
    needles = Needles.build(
        [document.content for document in evidence.documents],
        tokens=evidence.tokens,
        vectors=np.concatenate(evidence.vectors) if evidence.vectors else None,
        keys=evidence.keys,
        background=retained,
    )
    places = [opened.path, opened.keyring.directory]
    found = survey(places, needles)
    if not found.files:
        raise NotFound(f"Nothing to scan in {opened.path}.", "Was it moved?")
    searched = [
        f"text of {len(evidence.documents)} documents as UTF-8, UTF-16, UTF-32, JSON, Base64 and "
        "hex, in file names and contents, compressed streams included",
        f"token ids of {len(evidence.tokens)} training examples, "
        f"{sum(len(rows) for rows in evidence.vectors)} vectors, {len(evidence.keys)} data keys",
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
