"""Records that may not answer again: taken down while a legal hold kept them.

Guarantees: whoever ends the hold through `Store.release` destroys a barred record in place of
serving it; a bar goes with its record. Each request has its own: `drop` lifts that one's only.
"""

from __future__ import annotations

from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.marked import Marked

_BARS = Marked("bars")
add = _BARS.add
lift = _BARS.remove
drop = _BARS.drop


def barred(database: Database) -> frozenset[bytes]:
    """The handles of barred records."""
    return frozenset(_BARS.all(database))
