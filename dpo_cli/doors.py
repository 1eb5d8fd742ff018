"""Hydra's own ways to run code, to write files and to fill the memory, which a configuration could use before dpo sees
it: all shut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, _utils
from omegaconf.errors import OmegaConfBaseException
from yaml import MappingNode, Node, SequenceNode, YAMLError  # type: ignore[import-untyped] # OmegaConf reads with it
from yaml.constructor import ConstructorError  # type: ignore[import-untyped]

from dpo_cli.bounded import MOST_VALUES, is_endless
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


@contextmanager
def bounded_yaml() -> Iterator[None]:
    """Inside, OmegaConf takes no file of a few lines that stands for more values than any configuration has."""
    ordinary = _utils.get_yaml_loader

    class Bounded(ordinary()):  # type: ignore[misc]
        def construct_document(self, node: Node) -> Any:
            if is_endless(node, _inner):
                raise ConstructorError(None, None, f"more than {MOST_VALUES:,} values, by aliases", node.start_mark)
            try:
                values = super().construct_document(node)
            except ValueError as error:  # a number of more digits than Python reads
                raise ConstructorError(None, None, str(error), node.start_mark) from None
            if not isinstance(values, dict | list | str | None):
                raise ConstructorError(None, None, "expected a mapping, found a value alone", node.start_mark)
            return values

    _utils.get_yaml_loader = lambda: Bounded
    try:
        yield
    finally:
        _utils.get_yaml_loader = ordinary


def _inner(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


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
