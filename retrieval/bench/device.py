"""A disk of one's own to look through: an ext4 image, mounted, written, unmounted, read byte by byte.

Guarantees: the file system has the default journal mode, and every block of it is looked at, free
ones and the journal included. It needs root, loop devices and `mkfs.ext4`, and says which is lacking.
It does not look below the image: a flash disk moves blocks on its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ahocorasick_rs import BytesAhoCorasick

_MIB = 1 << 20
_PIECE = 32  # bytes that are looked for: no 32 bytes of text, vector or key occur by chance
_READ = 16 * _MIB


def impossible() -> str:
    """Why no image can be mounted here; empty when one can."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(program) is None:
            return f"no {program}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), 8):
                return ""
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else "no loop device"


@contextlib.contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Make `folder`/image, an ext4 file system, and mount it; unmounted (so synced) at the end.

    Yields the root of the file system. The image stays.

    Raises:
        subprocess.CalledProcessError: no rights, or no loop device.
    """
    image, point = folder / "image", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(mebibytes * _MIB)
    point.mkdir()
    _run("mkfs.ext4", "-q", "-F", str(image))
    _run("mount", "-o", "loop", str(image), str(point))
    try:
        yield point
    finally:
        _run("umount", str(point))


def remaining(wanted: Sequence[Sequence[bytes]], files: Sequence[Path]) -> int:
    """How many of `wanted` have at least one of their byte strings in a file.

    The first 32 bytes of a string stand for it. Files are read in pieces that overlap.
    """
    heads = [(item, needle[:_PIECE]) for item, some in enumerate(wanted) for needle in some]
    if not heads:
        return 0
    machine = BytesAhoCorasick([head for _, head in heads])
    same: dict[bytes, set[int]] = {}
    for item, head in heads:
        same.setdefault(head, set()).add(item)
    found: set[int] = set()
    for path in files:
        with path.open("rb") as file:
            tail = b""
            while data := file.read(_READ):
                data = tail + data
                for which, _, _ in machine.find_matches_as_indexes(data, overlapping=True):
                    found |= same[heads[which][1]]
                tail = data[-(_PIECE - 1) :]
    return len(found)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603  (fixed programs)
