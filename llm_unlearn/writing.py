"""What every writer of a workspace does before it writes.

Guarantees: there is one writer at a time; what a killed one left is cleared away, and the takedowns that
it had accepted are finished, before anything else is written. A caller may take over the second
(`resuming`), and leave the rest of the first to the next writer (`quick`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from llm_unlearn.errors import WorkspaceReadOnly
from llm_unlearn.opened import Opened
from llm_unlearn.retrieval.lock import WriterLock


@contextmanager
def writing(opened: Opened, *, resuming: bool = True, quick: bool = False) -> Iterator[None]:
    """Hold the writer's lock; clear away what a killed writer left; finish its takedowns.

    Args:
        resuming: False leaves unfinished takedowns to the caller.
        quick: look only at as much as a new key needs; the next writer does the rest.

    Raises:
        WorkspaceReadOnly: this user cannot write it.
        WorkspaceLocked: another process is writing.
    """
    if opened.database.readonly or not os.access(opened.path, os.W_OK):
        raise WorkspaceReadOnly(f"{opened.path} cannot be written.", "Give this user write access.")
    with WriterLock(opened.path / "lock"):
        if quick:
            opened.vault.sweep(quick=True)
        else:
            opened.tidy()
        if resuming:
            from llm_unlearn.takedown.machine import Takedowns

            Takedowns(opened).resume()
        yield
