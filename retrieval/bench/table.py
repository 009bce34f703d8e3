"""The table that people read. Every number in it is also a field of `Row`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from llm_unlearn.retrieval.bench.measure import Row


def table(rows: Sequence[Row], threads: int = 1) -> Table:
    """One line for each store."""
    plural = "" if threads == 1 else "s"
    shown = Table(title=f"p50 / p95 in ms; recall@10; {threads} thread{plural}")
    for heading in ("store", "ingest rows/s", "delete one document", "search", "recall"):
        shown.add_column(heading)
    for heading in ("search after deletions", "recall", "texts left", "vectors left"):
        shown.add_column(heading)
    for row in rows:
        pairs = [f"{a:.2f} / {b:.2f}" for a, b in (row.delete, row.search, row.search_after)]
        shown.add_row(
            row.store,
            f"{row.ingest:,.0f}",
            pairs[0],
            pairs[1],
            f"{row.recall:.3f}",
            pairs[2],
            f"{row.recall_after:.3f}",
            str(row.texts_left),
            str(row.vectors_left),
        )
    return shown
