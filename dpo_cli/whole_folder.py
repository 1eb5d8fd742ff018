"""A folder that is complete or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def in_place_of(folder: Path, partial: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` once everything is in it, and is removed if that fails.

    Args:
        folder: the final name; what is there is replaced.
        partial: the name until then, on the same file system; what a killed process left there is removed.

    Raises:
        OSError: it can't be written.
    """
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        sync_parents(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or which names are in a folder, before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_parents(path: Path) -> None:
    """Have the disk hold the name of ``path``, and those of the two folders it is in, which may be new as well."""
    for parent in path.resolve().parents[:3]:
        with suppress(PermissionError):  # not ours to read, so it was there before
            sync(parent)
