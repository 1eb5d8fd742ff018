"""What of a run may leave this machine: names of models and data, and a configuration without places and secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml  # type: ignore[import-untyped]

from dpo_cli.data.sources.local import is_local
from dpo_cli.data.sources.urls import is_url

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""``OWNER/NAME``."""
_PLACES = {"path", "eval", "chat_template"}
"""Keys whose values may be files, folders or URLs."""
_OWN = {"run_dir": None, "cache_dir": None, "resume": "none"}
"""Keys that say something of this machine alone, and what they are to others."""


def hub_id(path: str) -> str | None:
    """A path that is a hub id, else None. A folder of that name comes first, as everywhere."""
    return path if HUB_ID.fullmatch(path) and not is_local(path) else None


def public_name(path: str) -> str:
    """A hub id as it is; of a URL what is no secret; of a folder or file the last part of its name."""
    if is_url(path):
        return _plain_url(path)
    if hub_id(path) is not None or not is_local(path):
        return path
    place = Path(path)
    return f"{place.parent.name}/final" if place.name == "final" and place.parent.name else place.name


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration for others to read: places on this machine by the last part of their names, URLs without
    passwords and signatures, and without folders that are nobody else's."""
    return {name: _public(name, value) for name, value in settings.items() if name != "defaults"}


def without_signatures(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration for one's own eyes, elsewhere: URLs without what gives access to them, all else as it is."""
    return {
        key: without_signatures(value)
        if isinstance(value, Mapping)
        else _plain_url(value)
        if key in _PLACES and isinstance(value, str) and is_url(value)
        else value
        for key, value in settings.items()
    }


def public_yaml(settings: Mapping[str, Any]) -> str:
    """``public_settings`` as a file that trains: ``dpo train --config-dir . --config-name config``."""
    with_hydra = {"defaults": ["hydra_settings", "_self_"], **public_settings(settings)}
    return str(yaml.safe_dump(with_hydra, sort_keys=False, allow_unicode=True))


def _public(key: str, value: Any) -> Any:
    if key in _OWN:
        return _OWN[key]
    if isinstance(value, Mapping):
        return public_settings(value)
    if key not in _PLACES or not isinstance(value, str):
        return value
    if is_url(value):
        return _plain_url(value)
    return public_name(value) if value.startswith(("/", "~", "file://")) else value


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
