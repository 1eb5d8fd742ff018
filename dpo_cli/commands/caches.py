"""Where things are kept that another run would make again."""

from __future__ import annotations

import os
from pathlib import Path

from dpo_cli.commands.writable import check_writable
from dpo_cli.errors import DpoError


def cache_folder(configured: str | None) -> Path:
    """Of reference log-probs, tokens, and hashes of files.

    Raises:
        DpoError: it can't be written to; or it is another user's, and everybody may put files into it, which would be
            believed.
    """
    folder = Path(configured or os.environ.get("DPO_CACHE") or Path.home() / ".cache" / "dpo").expanduser()
    if is_strangers(folder) and is_open_to_all(folder):
        raise DpoError(
            f"the cache {folder} is another user's, and everybody may write to it: name another with DPO_CACHE or "
            "reference.cache_dir and data.cache_dir, or have its owner take that away (chmod o-w)"
        )
    advice = "name another with DPO_CACHE, or reference.cache_dir and data.cache_dir"
    check_writable(folder, "the cache", advice, locks=True)
    return folder


def is_strangers(folder: Path) -> bool:
    """Whether a folder is there and belongs to somebody who is neither this user nor root."""
    return folder.exists() and folder.stat().st_uid not in (os.getuid(), 0)


def is_open_to_all(folder: Path) -> bool:
    """Whether a folder is there and every user of the machine may put files into it."""
    return folder.exists() and bool(folder.stat().st_mode & 0o002)
