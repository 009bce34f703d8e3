"""Which takedown somebody means: by its number, or by the request's id.

Guarantees: a word that could mean two takedowns means none.
"""

from __future__ import annotations

from llm_unlearn.errors import InputError, NotFound
from llm_unlearn.takedown.journal import Filed, Journal


def find(journal: Journal, which: str, sender: str | None = None) -> Filed:
    """A takedown by its number, or by the request's id (with the sender where several have it).

    Raises:
        NotFound: there is none.
        InputError: several requests have this id, or it is the number of another takedown.
    """
    rows = journal.filed()
    if sender is not None:
        row = journal.find(which, sender)
        found = [] if row is None else [row]
    else:
        known = journal.find(which)
        named = [row for row, case in journal.open_cases() if case.request_id == which]
        found = list({row.number: row for row in (*named, *([known] if known else []))}.values())
        digits = which.isascii() and which.isdigit()
        counted = [row for row in rows if row.number == int(which)] if digits else []
        others = [row for row in found if row not in counted]
        if counted and others:
            numbers = ", ".join(str(row.number) for row in others)
            raise InputError(
                f"{which!r} is the number of one takedown and the id of another, takedown {numbers}.",
                "Give that one's number, or an id with its sender (--from).",
            )
        found = counted or found
    if not found:
        raise NotFound(
            f"There is no takedown {which!r}.",
            "`takedown list` shows all; one that is over is known by its number, or by id and sender.",
        )
    if len(found) > 1:
        numbers = ", ".join(str(row.number) for row in found)
        raise InputError(f"Several requests have the id {which!r}: {numbers}.", "Give the number.")
    return found[0]
