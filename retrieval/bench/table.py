"""The tables that people read. Every number in them is also a field of `Row`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from llm_unlearn.retrieval.bench.measure import Pair, Row

_SPEED = ("store", "ingest\nrows/s", "delete a\ndocument", "delete a\nsubject")
_SEARCH = ("search", "recall", "search,\n10% gone", "recall")
_LEFT = ("store", "of", "files:\ntexts", "files:\nvectors", "copy made\nbefore", "device:\ntexts")
_MORE = ("device:\nvectors", "device:\nkeys")


def tables(rows: Sequence[Row], threads: int = 1) -> list[Table]:
    """Speed, residue, and the rest of our own life; one line for each store."""
    plural = "" if threads == 1 else "s"
    speed = Table(title=f"p50 / p95 in ms; recall@10; {threads} thread{plural}")
    left = Table(title="deleted documents of which something is left")
    life = Table(title="ours: a new process, one index")
    for heading in (*_SPEED, *_SEARCH):
        speed.add_column(heading, no_wrap=True)
    for heading in (*_LEFT, *_MORE):
        left.add_column(heading, no_wrap=True)
    for heading in ("store", "opens in s", "peak MiB", "rotates 100,000 keys in s"):
        life.add_column(heading, no_wrap=True)
    for row in rows:
        times = [_pair(pair) for pair in (row.delete, row.delete_subject)]
        searches = [_pair(row.search), f"{row.recall:.3f}"]
        searches += [_pair(row.search_after), f"{row.recall_after:.3f}"]
        speed.add_row(row.store, f"{row.ingest:,.0f}", *times, *searches)
        on = row.device
        found = [on.copy, on.texts, on.vectors, on.keys] if on else [None] * 4
        counts = [row.deleted, row.texts_left, row.vectors_left, *found]
        left.add_row(row.store, *("-" if count is None else str(count) for count in counts))
        if row.life:
            numbers = (row.life.open, row.life.memory, row.life.rotate)
            life.add_row(row.store, *(f"{number:,.2f}" for number in numbers))
    return [speed, left, *([life] if life.row_count else [])]


def _pair(pair: Pair | None) -> str:
    return "-" if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}"
