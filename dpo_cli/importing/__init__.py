"""A configuration of TRL, axolotl or LLaMA-Factory as an experiment. It is data: nothing in it is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from dpo_cli.bounded import MOST_VALUES, is_endless
from dpo_cli.errors import DpoError
from dpo_cli.importing import axolotl, llamafactory, trl
from dpo_cli.importing.axolotl_options import AXOLOTL, PLUGINS
from dpo_cli.importing.draft import Draft, brief
from dpo_cli.importing.llamafactory_options import LLAMAFACTORY
from dpo_cli.importing.options import Table
from dpo_cli.importing.render import render
from dpo_cli.importing.trl_options import known_to_any

_SIGNATURES = {"axolotl": "base_model", "LLaMA-Factory": "stage"}
"""Options that no other of the tools has."""
_LONGEST = 1_000_000
"""Bytes of a file; a long configuration has thousands."""
_OURS = {"defaults", "model", "data", "loss", "reference", "optim", "train", "eval", "engine", "tracker"}

TOOLS: dict[str, tuple[Table, Callable[..., str]]] = {
    "TRL": (known_to_any(), trl.convert),
    "axolotl": (AXOLOTL | PLUGINS, axolotl.convert),
    "LLaMA-Factory": (LLAMAFACTORY, llamafactory.convert),
}
"""Every tool with its options and its converter."""


def import_config(path: Path, *, trainer: str | None, processes: int, heading: list[str]) -> tuple[str, Draft]:
    """The experiment that a configuration of another tool amounts to.

    Args:
        path: its file.
        trainer: which of TRL's trainers it is for; None = by its options.
        processes: on which the other tool ran.
        heading: how to use the result, for its first comment.

    Returns:
        The experiment's text, and what it was made from.

    Raises:
        DpoError: no such file, no YAML or JSON, no configuration of such a tool, or a value that can't be.
    """
    given = read(path)
    draft = Draft()
    try:
        tool = recognise(given)
        origin = TOOLS[tool][1](given, draft, trainer=trainer, processes=processes)
    except DpoError as error:
        raise DpoError(f"{path}: {error}") from None
    opening = (
        f"Converted from {brief(path.name)}, read as {origin}. What that file leaves out has the value that it has "
        "there, and says so. Remarks on what could not be converted are at the end."
    )
    return render(draft, [opening, *heading]), draft


def read(path: Path) -> dict[str, Any]:
    """The options in a file of YAML or JSON, by name.

    Raises:
        DpoError: there is no such file, or it holds something else.
    """
    if path.suffix in (".bin", ".pt", ".pkl", ".pickle"):
        raise DpoError(
            f"{path} is a pickle, which may hold code and is not opened; save the arguments as JSON "
            "(open('args.json', 'w').write(args.to_json_string())), or give the YAML they came from"
        )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DpoError(f"{path} is no file; expected one of YAML or JSON")
    try:
        if path.stat().st_size > _LONGEST:
            raise DpoError(f"{path} has more than {_LONGEST:,} bytes; expected a configuration, of YAML or JSON")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DpoError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DpoError(f"{path} is a folder; expected a file of YAML or JSON") from None
    except UnicodeDecodeError:
        raise DpoError(f"{path} is not text; expected YAML or JSON") from None
    language = "JSON" if path.suffix == ".json" else "YAML"
    try:
        content = json.loads(text) if language == "JSON" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DpoError(f"{path} is not valid {language}: {_first_line(error)}") from None
    if not isinstance(content, dict) or not content:
        raise DpoError(f"{path}: expected options and their values, found {_kind(content)}")
    if is_endless(content, _inner):
        raise DpoError(f"{path}: its aliases stand for more than {MOST_VALUES:,} values")
    _check_numbers(path, content)
    return {str(name): value for name, value in content.items()}


def recognise(given: Mapping[str, Any]) -> str:
    """Whose options they are.

    Raises:
        DpoError: nobody's: half of them at least must be known.
    """
    if given.keys() & _OURS and all(isinstance(given[name], dict | list) for name in given.keys() & _OURS):
        raise DpoError("this looks like an experiment of dpo itself: dpo train --config-dir DIR +experiment=NAME")
    counts = {tool: len(given.keys() & table.keys()) for tool, (table, _) in TOOLS.items()}
    signed = [tool for tool, name in _SIGNATURES.items() if name in given]
    tool = signed[0] if signed else max(counts, key=lambda name: counts[name])
    if counts[tool] * 2 < len(given):
        knows = ", ".join(f"{name} knows {count}" for name, count in counts.items())
        raise DpoError(f"of {len(given)} options {knows}; expected a configuration of one of them")
    return tool


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple | set) else []


def _check_numbers(path: Path, content: Any) -> None:
    """Refuse numbers that Python can't turn into text, or into other numbers.

    Raises:
        DpoError: naming one.
    """
    values = [content]
    while values:
        value = values.pop()
        values += _inner(value)
        if isinstance(value, int) and value.bit_length() > 64:
            raise DpoError(f"{path} holds a whole number of {value.bit_length():,} bits; expected 64 at most")


def _kind(content: Any) -> str:
    return {dict: "none", type(None): "nothing", list: "a list"}.get(type(content), "a single value")


def _first_line(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}" if mark is not None else ""
    return (str(getattr(error, "problem", None) or error).splitlines() or ["too deep"])[0] + place
