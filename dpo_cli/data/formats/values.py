"""Single values of a row, checked: text, numbers, lists, truth.

Tables of text (CSV) hold everything as text. So a field that can't be plain text is also read from text: a number from
``"4.5"``, a truth value from ``"true"`` or ``"0"``, a list or an object from its JSON. Inside lists and objects, where
types are known, nothing is converted, but for the scores of data sets that are published with numbers as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_cli.data.formats.reading import BadRowError

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def kind_of(value: Any) -> str:
    """The value's type, for messages."""
    return "null" if value is None else type(value).__name__


def names(found: Iterable[str]) -> str:
    """``a, b``."""
    return ", ".join(found)


def text(value: Any, place: str) -> str:
    """Text that a tokenizer takes.

    Raises:
        BadRowError: no text, or half a surrogate pair.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{place}: expected text, found {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON lets half a surrogate pair through ("\ud83d"); tokenizers do not.
        raise BadRowError(
            f"{place}: half a character (\\u{ord(value[error.start]):04x}) at {error.start + 1}"
        ) from error
    return value


def from_json(value: Any, place: str) -> Any:
    """What a text that starts with ``[`` or ``{`` stands for; anything else as it is.

    Raises:
        BadRowError: it starts so, and is no JSON.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"{place}: starts like JSON and isn't ({str(error).partition(': line')[0]})") from error


def plain_data(value: Any, place: str) -> Any:
    """A value that JSON can say, in characters that tokenizers take: what goes into a chat template.

    Raises:
        BadRowError: it is no such value (a date, say).
    """
    try:
        text(json.dumps(value, ensure_ascii=False), place)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, BadRowError):
            raise
        raise BadRowError(f"{place}: expected values that JSON has ({error})") from error
    return value


def list_of(values: Mapping[str, Any], column: str, kind: Any) -> list[Any]:
    """A column's list, of at least one and all of one kind.

    Raises:
        BadRowError: anything else.
    """
    value = from_json(values.get(column), column)
    if not isinstance(value, list) or not value:
        raise BadRowError(
            f"{column}: expected a list of at least one, found {'none' if value == [] else kind_of(value)}"
        )
    for number, item in enumerate(value, start=1):
        if not isinstance(item, kind) or isinstance(item, bool):
            raise BadRowError(f"{column}, number {number}: found {kind_of(item)}")
    return value


def numbers_of(values: Mapping[str, Any], column: str, count: int) -> list[float]:
    """A column's numbers, one per answer.

    Raises:
        BadRowError: other than ``count`` finite numbers.
    """
    found = [_float(value) for value in list_of(values, column, int | float)]
    if len(found) != count or not all(map(math.isfinite, found)):
        raise BadRowError(f"{column}: expected {count} finite numbers, one per answer, found {len(found)}")
    return found


def number(values: Mapping[str, Any], column: str) -> float:
    """A column's finite number, which may be text.

    Raises:
        BadRowError: anything else.
    """
    found = as_number(values.get(column))
    if found is None:
        value = values.get(column)
        shown = "no such column" if column not in values else repr(value[:40]) if isinstance(value, str) else value
        raise BadRowError(f"{column}: expected a number, found {str(shown)[:60]}")
    return found


def as_number(value: Any) -> float | None:
    """The value as a finite number, also from text such as ``"4.5"``; None = it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    found = _float(value)
    return found if math.isfinite(found) else None


def truth(values: Mapping[str, Any], column: str) -> bool:
    """A column's truth value: true or false, 1 or 0, or one of these as text.

    Raises:
        BadRowError: anything else.
    """
    value = values[column]
    known = _TRUTH.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(known, int | float) or known not in (True, False):
        raise BadRowError(f"{column}: expected true or false, found {repr(value)[:60]}")
    return bool(known)


def _float(value: int | float | str) -> float:
    """NaN for what is no number or too large for one."""
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
