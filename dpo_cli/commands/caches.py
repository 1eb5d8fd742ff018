"""Where things are kept that another run would make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(configured: str | None) -> Path:
    """Of reference log-probs, tokens, and hashes of files."""
    return Path(configured or os.environ.get("DPO_CACHE") or Path.home() / ".cache" / "dpo").expanduser()
