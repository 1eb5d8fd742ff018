"""An experiment in the making: its keys, and what has to be said about them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from dpo_cli.importing.options import Options
from dpo_cli.secret import is_secret_option

_LONGEST = 60


class Draft:
    """What the converters write into."""

    def __init__(self) -> None:
        self.groups: dict[str, str] = {}
        """Options of config groups other than the default: ``loss`` to ``ipo``."""
        self.added: dict[str, str] = {}
        """Options of config groups put at other keys than their own: ``/loss@loss.terms.sft`` to ``sft``."""
        self.values: dict[str, tuple[Any, str]] = {}
        """Full keys, each with its value and a remark."""
        self.missing: dict[str, str] = {}
        """Full keys that must be given on the command line, and why."""
        self.checks: list[str] = []
        """What means something else here."""
        self.lost: dict[str, list[str]] = {}
        """Reasons, each with the options that can't be converted for it, though they change what is learnt."""
        self.harmless: dict[str, list[str]] = {}
        """The same of options that don't."""
        self.unknown: list[str] = []
        self.at_default: list[str] = []
        """Options without a counterpart that stand at the tool's default."""

    def set(self, key: str, value: Any, remark: str = "") -> None:
        """Give a key its value."""
        self.values[key] = (value, remark)

    def check(self, text: str) -> None:
        """Say that something means something else here."""
        self.checks.append(text)

    def lose(self, name: str, value: Any, why: str) -> None:
        """Say that a value can't be converted, which changes what is learnt."""
        self.lost.setdefault(why, []).append(shown(name, value))

    def drop(self, name: str, value: Any, why: str) -> None:
        """Say that a value isn't converted and need not be."""
        self.harmless.setdefault(why, []).append(shown(name, value))

    def account_for(self, options: Options) -> None:
        """Say something of every option that no converter took."""
        for name, value in options.left():
            option = options.known.get(name)
            if option is None:
                near = difflib.get_close_matches(name, options.known, n=1, cutoff=0.75)
                hint = f" (did you mean {near[0]}?)" if near else ""
                self.unknown.append(f"{shown(name, value)}{hint}")
            elif value == option.default or (not value and not option.default):
                self.at_default.append(name)
            elif option.ours:
                self.drop(name, value, f"without effect in {options.tool} too, as the other options stand")
            elif option.matters:
                self.lose(name, value, option.note)
            else:
                self.drop(name, value, option.note)


def shown(name: str, value: Any) -> str:
    """``name: value`` on one line, shortened; the value of a secret is left out."""
    return f"{brief(name)}: {_hidden(name) or brief(value)}"


def brief(value: Any, depth: int = 0) -> str:
    """A value as YAML would have it, on one line, shortened."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, list | tuple):
        text = "[...]" if depth > 1 else f"[{', '.join(brief(item, depth + 1) for item in value[:8])}]"
    elif isinstance(value, Mapping):
        pairs = [f"{brief(key)}: {_hidden(key) or brief(item, depth + 1)}" for key, item in list(value.items())[:8]]
        text = "{...}" if depth > 1 else f"{{{', '.join(pairs)}}}"
    else:
        text = repr(value)[1:-1] if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _hidden(name: Any) -> str:
    return "(not shown)" if is_secret_option(str(name)) else ""
