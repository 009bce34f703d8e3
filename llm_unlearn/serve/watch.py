"""A number that changes with every commit to the workspace, by this process or any other.

It has a connection of its own, so asking takes microseconds and waits for no search and no write.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from llm_unlearn.errors import EnvironmentFailure


class Watch:
    """The commits of one database. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False
        )

    def number(self) -> int:
        """Another number than before if anything was committed since.

        Raises:
            EnvironmentFailure: the database can no longer be asked.
        """
        with self._lock:
            try:
                (number,) = self._connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error as error:
                raise EnvironmentFailure("The workspace can no longer be read.") from error
        return int(number)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
