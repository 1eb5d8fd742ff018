"""Hydra's own ways to run code and to write files, which a configuration could use before dpo sees it: all shut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped] # OmegaConf reads files with it

from dpo_cli.errors import ConfigError
from dpo_cli.overrides import is_flag

_OWN_PLUGINS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
_FIXED: dict[str, tuple[Any, ...]] = {
    "run.dir": (".",),
    "sweep.subdir": (".",),
    "output_subdir": (None,),
    "job.chdir": (None, False),
    "job.env_set": ({},),
    "job.env_copy": ([],),
}
"""Keys of ``hydra`` that are dpo's, and what they may be: with others, Hydra would write files, or change folder and
environment, where a configuration says."""


def check_doors(tree: DictConfig) -> None:
    """
    Args:
        tree: a composed configuration with its ``hydra`` section.

    Raises:
        ConfigError: naming the keys that would run code, or write where dpo does not.
    """
    settings = OmegaConf.to_container(tree.hydra, resolve=False)
    code = [f"hydra.{name}" for name in ("callbacks", "job_logging", "hydra_logging") if _has_code(settings, name)]
    code += [f"hydra.{key}" for key, target in targets(settings) if target not in _OWN_PLUGINS]
    problems = [f"{door} would run code: not supported in a configuration" for door in dict.fromkeys(code)]
    for key, allowed in _FIXED.items():
        if _at(settings, key) not in allowed:
            problems.append(f"hydra.{key} is decided by dpo: folders are run_dir and reference.cache_dir")
    if problems:
        raise ConfigError(problems)


def check_search_path(flags: Sequence[str], overrides: Sequence[str]) -> None:
    """Before anything is composed: a search path may name packages, which Hydra imports to look into them.

    Args:
        flags: of the command line; those that name another primary configuration are followed, as only it may have one.
        overrides: of the command line.

    Raises:
        ConfigError: if it names more than folders.
    """
    found = [word for word in overrides if word.lstrip("+~").startswith("hydra.searchpath")]
    named = _values_of(flags, "-cn", "--config-name")
    for folder in [*_values_of(flags, "-cd", "--config-dir"), *_values_of(flags, "-cp", "--config-path")]:
        for name in named:
            file = Path(folder, name if name.endswith(".yaml") else f"{name}.yaml")
            with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException):  # Hydra says what is wrong with it
                settings = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
                found.append(str((settings.get("hydra") or {}).get("searchpath")) if isinstance(settings, dict) else "")
    others = [re.sub(r"file://[^'\",\]]*", "", text) for text in found]
    if any(sign in text for text in others for sign in ("://", "${")):  # an interpolation may come to anything
        raise ConfigError(["hydra.searchpath would import a package, which is code; expected folders alone"])


def _values_of(flags: Sequence[str], short: str, long: str) -> list[str]:
    words = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("-") else [flag])]
    return [value for name, value in pairwise(words) if name == short or is_flag(name, long)]


def targets(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every ``_target_`` in a configuration, with the key it stands at."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "_target_":
                yield prefix.rstrip("."), str(value)
            yield from targets(value, f"{prefix}{key}.")
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from targets(value, f"{prefix}{number}.")


def _has_code(settings: Any, name: str) -> bool:
    part = settings.get(name) or {}
    return bool(part) if name == "callbacks" else bool(part.get("handlers") or part.get("formatters"))


def _at(settings: Any, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (settings[section] if section else settings).get(name)
