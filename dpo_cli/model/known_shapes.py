"""Configurations of models by hub id, so that a plan needs neither weights nor a network.

``configs/model/shapes`` holds what transformers needs of the published ``config.json`` files of the recipes' models.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from dpo_cli.errors import DpoError


def model_config(path: str, shapes: Path) -> Any:
    """The configuration of a model: its folder's own, or a known hub id's. Nothing is downloaded.

    Args:
        path: a folder with ``config.json``, or a hub id.
        shapes: the folder of known ones.

    Raises:
        DpoError: if it is neither.
    """
    file = Path(path, "config.json")
    if file.is_file():
        try:
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise DpoError(f"{file} is not a model's configuration ({str(error).strip().splitlines()[0]})") from None
    known = _known(shapes)
    if path in known:
        settings = dict(known[path])
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    if Path(path).is_dir():
        raise DpoError(f"model.path={path} is not a model folder: it holds no config.json")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        raise DpoError(
            f"model.path={path}: its shape is not known here, and a plan downloads nothing; give a folder that holds "
            f"its config.json (known: {', '.join(sorted(known))})"
        ) from None


@cache
def _known(shapes: Path) -> dict[str, dict[str, Any]]:
    """Configurations by hub id."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(shapes.glob("*.json"))]
    return {name: shape["config"] for shape in read for name in shape["names"]}
