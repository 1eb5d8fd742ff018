"""The options of another tool: what each becomes here, and what a file says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from dpo_cli.errors import DpoError


@dataclass(frozen=True, slots=True)
class Option:
    """One option of another tool. Converter and documentation both read it."""

    name: str
    default: Any
    """The tool's."""
    ours: str
    """The keys it becomes, with commas between; empty = it can't be converted."""
    note: str
    """How it is converted; or why it isn't, and what to do."""
    matters: bool
    """Whether something else is learnt without it, where it can't be converted."""


Table = dict[str, Option]


def becomes(ours: str, note: str = "", /, **defaults: Any) -> list[Option]:
    """Options that become keys of ours, with their defaults."""
    return [Option(name, default, ours, note, True) for name, default in defaults.items()]


def lost(note: str, /, **defaults: Any) -> list[Option]:
    """Options that can't be converted, so that something else is learnt."""
    return [Option(name, default, "", note, True) for name, default in defaults.items()]


def harmless(note: str, /, **defaults: Any) -> list[Option]:
    """Options that aren't converted and don't change what is learnt."""
    return [Option(name, default, "", note, False) for name, default in defaults.items()]


def table(*parts: list[Option]) -> Table:
    """All of them by name; a name that stands twice is a mistake in the table."""
    options = [option for part in parts for option in part]
    by_name = {option.name: option for option in options}
    if len(by_name) < len(options):
        raise ValueError("an option stands twice in a table")
    return by_name


def with_defaults(options: Table, **defaults: Any) -> Table:
    """The same options where a tool has defaults of its own."""
    return options | {name: replace(options[name], default=default) for name, default in defaults.items()}


class Options:
    """What a file says, with the tool's defaults for what it leaves out.

    The parts of tools that build on Hugging Face's trainer are converted by the same code, which asks by that
    trainer's names; ``names`` says what the tool itself calls them.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        known: Table,
        *,
        tool: str,
        names: Mapping[str, str] | None = None,
        beneath: Table | None = None,
    ) -> None:
        """
        Args:
            given: the file's options.
            known: the tool's.
            tool: its name, for comments.
            names: its names for options that are asked for by another name.
            beneath: options of the library below, whose defaults hold where the tool hands nothing on.
        """
        self.given = given
        self.known = known
        # An option of the library below that the tool does not hand on is unknown, and not an answer.
        self._own = {name: value for name, value in given.items() if name in known}
        self.tool = tool
        self._names = names or {}
        self._beneath = beneath or {}
        self._taken: set[str] = set()

    def name(self, name: str) -> str:
        """What the tool calls it."""
        return self._names.get(name, name)

    def has(self, *names: str) -> bool:
        """Whether the file gives one of them a value."""
        return any(self._own.get(self.name(name)) is not None for name in names)

    def origin(self, *names: str) -> str:
        """A remark where the file gives none of them."""
        return "" if self.has(*names) else f"{self.tool}'s default"

    def default(self, name: str) -> Any:
        """The tool's, or the library's below; None if neither has one."""
        own = self.known.get(self.name(name))
        if own is not None and own.default is not None:
            return own.default
        return self._beneath[name].default if name in self._beneath else None

    def take(self, name: str) -> Any:
        """Its value, which may be None. What is never taken is reported as not converted."""
        self._taken.add(self.name(name))
        own = self._own.get(self.name(name))
        return self.default(name) if own is None and not self.is_null(name) else own

    def is_null(self, name: str) -> bool:
        """Whether the file says null."""
        return self._own.get(self.name(name), ...) is None

    def number(self, name: str) -> float | None:
        """Its value as a number; text such as ``5e-7``, which YAML reads as text, counts.

        Raises:
            DpoError: anything else.
        """
        value = self.take(name)
        if value is None:
            value = self.default(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
        return self._refuse(name, value, "a number")

    def whole(self, name: str) -> int | None:
        """Its value as a whole number, such as 3 or 3.0.

        Raises:
            DpoError: anything else.
        """
        value = self.number(name)
        if value is None:
            return None
        return int(value) if float(value).is_integer() else self._refuse(name, value, "a whole number")

    def truth(self, name: str) -> bool:
        """Its value as yes or no.

        Raises:
            DpoError: anything else.
        """
        value = self.take(name)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if value is not None and not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return bool(value)

    def text(self, name: str) -> str | None:
        """Its value as text; empty text is none.

        Raises:
            DpoError: a list or a mapping.
        """
        value = self.take(name)
        if isinstance(value, list | dict):
            self._refuse(name, value, "text")
        return None if value is None or value == "" else str(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """Its value as keys and values; none counts as empty.

        Raises:
            DpoError: anything else.
        """
        value = self.take(name)
        if value in (None, "", "{}"):
            return {}
        if not isinstance(value, dict):
            self._refuse(name, value, "keys and values")
        return {str(key): item for key, item in value.items()}

    def left(self) -> Iterator[tuple[str, Any]]:
        """What the file gives and nobody took."""
        return ((name, value) for name, value in self.given.items() if name not in self._taken)

    def _refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        raise DpoError(f"{self.name(name)}={value!r}: expected {expected}")
