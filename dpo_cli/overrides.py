"""The words of a command line, as users write them and as Hydra wants them; and Hydra's complaints in our words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException
from yaml import MarkedYAMLError  # type: ignore[import-untyped] # OmegaConf reads files with it

from dpo_cli.config import nearest_key
from dpo_cli.config_types import Section
from dpo_cli.errors import ConfigError

given: list[str] = []
"""The overrides of the command line that was composed last, for a command that suggests another."""

_FLAGS_WITH_VALUE = {"--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--info"}
_FLAGS_WITH_VALUE |= {"-c", "-p", "-cp", "-cn", "-cd", "-i"}


def add_plus(word: str) -> str:
    """``experiment=x`` means ``+experiment=x``: the plus is Hydra's rule for groups without a default, and for keys
    that have none, which those of DeepSpeed and sbatch are."""
    if word.startswith(("engine.deepspeed", "launch.extra")):
        return f"++{word}"
    return f"+{word}" if word.startswith("experiment=") else word


def apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags, with the value after a flag that takes one, and overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    for word in words:
        belongs_to_flag = bool(flags) and flags[-1] in _FLAGS_WITH_VALUE
        (flags if word.startswith("-") or belongs_to_flag else overrides).append(word)
    return flags, overrides


def asks_for_sweep(word: str) -> bool:
    """Whether the word is ``-m``."""
    return word == "-m" or is_flag(word, "--multirun")


def is_flag(word: str, flag: str) -> bool:
    """Whether ``word`` is the flag, in full or cut short as argparse lets it be."""
    name = word.partition("=")[0]
    return len(name) > 2 and flag.startswith(name)


def check_options(words: Sequence[str], configs: Path) -> None:
    """Refuse what Hydra can't stand in the place of a group's option: anything but a name.

    Args:
        words: of the command line.
        configs: the folder whose folders are the groups.

    Raises:
        ConfigError: naming the word.
    """
    try:
        overrides = OverridesParser.create().parse_overrides([word for word in words if "=" in word and word[0] != "-"])
    except HydraException:
        return  # it will say so itself
    for override in overrides:
        group = override.get_key_element().lstrip("+")
        if not group:
            raise ConfigError([f"{override.input_line}: expected a key before ="])
        if group == "hydra.mode":
            raise ConfigError([f"{override.input_line}: sweep with -m"])
        if (configs / group).is_dir():
            value = "" if override.is_delete() else override.value()
            options = value.list if isinstance(value, ChoiceSweep) else [value]
            if not all(isinstance(option, str | QuotedString | list) for option in options):
                raise ConfigError([f"{override.input_line}: {group} is a group; expected the name of an option"])


def explain(error: Exception, schema: type[Section]) -> str:
    """One line that says what to change."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        return f"unknown key {key}{nearest_key(key, schema)}"
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = match.groups()
        options = [name for name in re.findall(r"^\t(.+)$", text, flags=re.MULTILINE) if "=" not in name]
        near = difflib.get_close_matches(option, options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{group}={option}: there is no such option{hint} (available: {', '.join(options) or 'none'})"
    if match := re.search(r"Could not override '?([\w./@]+)'?\.\s*No match in the defaults list", text):
        return f"unknown key {match.group(1)}{nearest_key(match.group(1), schema)}"
    cause = error.__cause__
    lines = [line.strip() for line in [*text.splitlines(), *str(cause or "").splitlines()]]
    return " ".join(line for line in lines if line and not line.startswith("full_key") and "object_type" not in line)


def explain_yaml(error: MarkedYAMLError) -> str:
    """File, line and what is wrong with it."""
    mark = error.problem_mark or error.context_mark
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a configuration file"
    return f"{where}: not valid YAML ({error.problem or error.context})"
