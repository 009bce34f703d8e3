"""The child process of one probe: what to ask on standard input, the report on standard output.

Guarantees: nothing that it is told stands in its arguments or in any file; it only reads the workspace.
It ends with 1 after a mistake of the asker's, which it tells instead of a report.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from llm_unlearn.documents import Document
from llm_unlearn.errors import UnlearnError
from llm_unlearn.eval import cards
from llm_unlearn.probing import probe_subject
from llm_unlearn.workspace import Workspace


class Order(BaseModel):
    """What to ask, of which workspace, as whom."""

    path: Path
    keys: Path | None
    subject: str
    groups: list[str] = Field(min_length=1)
    controls: list[Document] = []


class Problem(BaseModel):
    """Why there is no report."""

    problem: str


def main() -> int:
    """Carry out the order on standard input."""
    order = Order.model_validate_json(sys.stdin.buffer.read())
    told = sys.stdout.buffer
    with contextlib.redirect_stdout(sys.stderr):  # a library that prints does not spoil the report
        try:
            with Workspace.open(order.path, keys=order.keys, readonly=True) as workspace:
                report = probe_subject(
                    workspace, order.subject, controls=order.controls, groups=order.groups
                )
        except UnlearnError as error:
            told.write(Problem(problem=str(error)).model_dump_json().encode())
            told.flush()
            return 1
    told.write(cards.dump(report))
    told.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
