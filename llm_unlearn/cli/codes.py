"""What each exit code means; the numbers themselves belong to the classes in `errors`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

DEFECT: Final = 1
USAGE: Final = 2
STOPPED: Final = 130
CLOSED_PIPE: Final = 141

MEANING: Final[dict[int, str]] = {
    0: "done",
    DEFECT: "a defect of this program: please report it",
    USAGE: "the command line itself is wrong",
    3: "what was handed over is unusable: documents, a config, a request",
    4: "not there: a subject, an id, a receipt",
    5: "the workspace: missing, locked, read-only, newer; or retraining waits",
    6: "a file is damaged, or the keys are missing",
    7: "access denied: no group was given",
    8: "a receipt, an audited shard, a claim of the demo, a comparison or a forgetting run does "
    "not hold",
    9: "the machine: disk full, no such model, a package is missing",
    STOPPED: "stopped by you: Ctrl-C, or the plan was not confirmed",
    CLOSED_PIPE: "whoever read the output stopped reading",
}


def epilog(codes: Iterable[int] | None = None) -> str:
    """The lines for `--help`: every code, or those that all commands share and the given ones."""
    shared = {0, DEFECT, USAGE, STOPPED}
    chosen = sorted(MEANING if codes is None else shared.union(codes))
    return "\n".join(["Exit codes:", *(f"{code:>3}  {MEANING[code]}" for code in chosen)])
