"""Files that appear whole or not at all: written beside their place, synced, renamed.

Holds:    `write_whole`, `sync_folder`, used by shards, weights, checkpoints and run folders.
Imports:  the standard library.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Put `content` (bytes, or a function that writes them into the open file) at `path`, atomically.

    On any failure the temporary file is removed and whatever stood at `path` before is untouched. Raises OSError.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut (POSIX; elsewhere the operating system decides)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
