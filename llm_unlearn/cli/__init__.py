"""The command line: `llm-unlearn`.

Guarantees: what a person did wrong is told in one line that names the thing and the remedy, with a
documented exit code and no traceback; `--help` loads no model library; with `--json` standard
output holds one JSON object and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: without the program's name; default those of this process.
    """
    try:
        from llm_unlearn.cli.app import run

        return run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # while the program itself was still being loaded
        return 130
