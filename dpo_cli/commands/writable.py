"""Whether what a command is to write can be written, asked before anything that takes long."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.whole_folder import why_not_writable


def check_writable(folder: Path, key: str, advice: str, *, locks: bool = False) -> None:
    """Refuse a folder in which nothing can be put, before anything that takes long.

    Args:
        folder: there already, or still to be made.
        key: that names it.
        advice: what to do.
        locks: whether its files are to be locked as well.

    Raises:
        DpoError: naming the folder and why.
    """
    if why := why_not_writable(folder, locks=locks):
        raise DpoError(f"{key}: {folder} can't be written to ({why}): {advice}")
