"""Where the configuration files are."""

from __future__ import annotations

from pathlib import Path


def config_folder() -> Path:
    """The folder with the configuration files: in the package when installed, beside it in a checkout."""
    here = Path(__file__).parent
    return next(folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir())
