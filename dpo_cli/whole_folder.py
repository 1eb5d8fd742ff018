"""A folder that is complete or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
