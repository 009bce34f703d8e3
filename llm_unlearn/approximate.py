"""What a workspace's serving adapter knows of a subject, handed to approximate forgetting.

Guarantees: reads only; nothing of the result enters the workspace, whose checkpoints stay what the
documents say they are; the result is refused a place inside the workspace or its keys. It is no takedown:
nothing is fenced, deleted or receipted, and the subject's documents stay.
"""

from __future__ import annotations

from pathlib import Path

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.forget.job import Target, Texts
from llm_unlearn.opened import Opened


def serving(opened: Opened, subject: str) -> tuple[Target, Texts, int]:
    """The adapter that serves a subject, its documents to forget and the shard's others to keep.

    Returns:
        The adapter in place of its shard, the texts, and the shard's number.

    Raises:
        NotFound: no live document of the subject is in a trained adapter.
    """
    mark = opened.vault.mark("subject", subject)
    for state in opened.states():
        covered = [record for part in state.wanted[: state.clean] for record in part.records]
        if all(record.subject != mark for record in covered):
            continue
        adapter = opened.adapter(state)
        if adapter is None:
            continue
        documents = [(record.subject == mark, opened.document(record)) for record in covered]
        texts = Texts(
            [document for gone, document in documents if gone],
            [document for gone, document in documents if not gone],
        )
        return Target(opened.models.host, adapter), texts, state.shard
    raise NotFound(
        f"No live document of the subject {subject!r} is in a trained adapter.",
        "Check the name, or run `llm-unlearn train` first. What lies in the store is not in weights.",
    )


def outside(opened: Opened, out: Path) -> None:
    """Check that a result would not lie in the workspace or beside its keys.

    Raises:
        InputError: it would.
    """
    for home in (opened.path, opened.keyring.directory):
        if out.resolve().is_relative_to(home.resolve()):
            raise InputError(
                f"{out} lies inside {home}: an approximate result is no part of a workspace.",
                "Choose a directory outside it.",
            )
