"""What a secret looks like: by the name it goes under, by its own shape, or because this process's environment has it.

No key of a configuration takes a secret. One that is found in a configuration or on a command line is refused before
anything is written, and what is said of an error, whoever wrote it, goes through ``hide``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpo_cli.errors import ConfigError, DpoError

_VARIABLE = re.compile("TOKEN(?!IZ)|SECRET|PASSW|KEY(?!BOARD)|CREDENTIAL|AUTH(?!OR)", re.IGNORECASE)
_OPTION = re.compile(r"^token$|(hub|hf|auth|access|api)_token|api_key|secret|password|webhook")
_SHAPES = {
    "what looks like a token of the hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "what looks like an API key": re.compile(
        r"\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{32,}|\bAIza[\w-]{35}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b"
        r"|\bgithub_pat_\w{40,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bxox[abpr]-[\w-]{20,}"
    ),
    "a URL with a password": re.compile(r"(?<=://)[\w.%+~-]*:[\w.%+~!$*=-]+(?=@)"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*"),
}
_SHORTEST = 12
"""Shorter values of variables are words that may stand anywhere."""


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name may hold a secret."""
    return _VARIABLE.search(name) is not None


def is_secret_option(name: str) -> bool:
    """Whether an option of another tool of this name holds a secret; ``eos_token`` and ``num_memory_tokens`` don't."""
    return _OPTION.search(name) is not None


def find(text: str, variables: Mapping[str, str] = os.environ) -> str:
    """What secret stands in a text, without showing it; empty = none.

    Args:
        text: any.
        variables: of the environment; those named like secrets are looked for by their values.
    """
    held = next((f"the value of {name}" for name, value in _values(variables) if value in text), "")
    return held or next((what for what, shape in _SHAPES.items() if shape.search(text)), "")


def hide(text: str, variables: Mapping[str, str] = os.environ) -> str:
    """The text with ``***`` in the place of every secret."""
    for _, value in _values(variables):
        text = text.replace(value, "***")
    for shape in _SHAPES.values():
        text = shape.sub("***", text)
    return text


def _values(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in variables.items():
        if len(value) >= _SHORTEST and is_secret_variable(name) and not os.path.exists(value):  # a key's file is none
            yield name, value


def check_words(words: Sequence[str]) -> None:
    """
    Raises:
        DpoError: a secret stands on the command line, where others see it in the list of processes.
    """
    for word in words:
        if held := find(word):
            name = word.partition("=")[0] if "=" in word and not find(word.partition("=")[0]) else "an argument"
            raise DpoError(f"{name} holds {held}: {_INSTEAD}")


def check_settings(settings: Any) -> None:
    """
    Args:
        settings: a configuration, or a part of one.

    Raises:
        ConfigError: a secret stands in it; naming the keys.
    """
    problems = [f"{key} holds {held}: {_INSTEAD}" for key, text in _texts(settings, "") if (held := find(text))]
    if problems:
        raise ConfigError(problems)


_INSTEAD = (
    "no argument and no key takes a secret, as these are written down; leave it to the environment, to a login "
    "(hf auth login, wandb login) or to ~/.netrc"
)


def _texts(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield f"a key in {key.rstrip('.') or 'the configuration'}", str(name)
            yield from _texts(value, f"{key}{name}.")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _texts(value, f"{key}{number}.")
    elif isinstance(tree, str):
        yield key.rstrip("."), tree
