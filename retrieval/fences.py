"""What a legal hold hides: fences that stand when it ends.

Guarantees: a record that was fenced when a hold began, or that an open request names while one keeps
it, goes back behind the fence when `Store.release` ends the hold. Whoever lifts a fence says so here
too (`forget`, `drop`), or the record stays fenced.
"""

from __future__ import annotations

from collections.abc import Iterable

from llm_unlearn.retrieval.database import Database
from llm_unlearn.retrieval.marked import Marked

_FENCES = Marked("fences")
_HOLD = b""  # in the place of a request
add = _FENCES.add
drop = _FENCES.drop
of = _FENCES.of


def remember(database: Database, handles: Iterable[bytes]) -> None:
    """These were fenced when a hold began."""
    _FENCES.add(database, handles, _HOLD)


def forget(database: Database, handles: Iterable[bytes]) -> None:
    """Nothing fences these any more but requests that were added by name."""
    _FENCES.unmark(database, handles, _HOLD)


def standing(database: Database) -> frozenset[bytes]:
    """The handles of records that may not answer when their hold ends."""
    return frozenset(_FENCES.all(database))


def asked(database: Database) -> frozenset[bytes]:
    """Those of them that a request was added for."""
    found = _FENCES.all(database)  # of several marks the last, and a request comes after `_HOLD`
    return frozenset(handle for handle, request in found.items() if request != _HOLD)
