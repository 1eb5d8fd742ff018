"""A shape's fields from columns of other names.

A field's source is a column's name; or a path with dots into a nested column (``answers.0.text``; a column whose own
name has dots comes first); or a text with columns in braces, such as ``"{context}\\n\\n{question}"``, where ``{{`` and
``}}`` stand for braces. In braces are names and paths, never anything that is run or formatted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from dpo_cli.data.formats.reading import BadRowError
from dpo_cli.data.formats.values import kind_of, names

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[^{}]+)\}|(?P<text>[^{}]+)")


def fields_of(values: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row's values by the shape's fields: those that ``columns`` names from there, the others by their own names.

    Raises:
        BadRowError: a column that isn't there, or one in braces that is no text or number.
    """
    if not columns:
        return values
    return {**values, **{field: _value(values, source, field) for field, source in columns.items()}}


def source_problem(source: str) -> str:
    """What is wrong with a field's source; empty = nothing."""
    if not source:
        return "is empty: expected a column's name"
    if ("{" in source or "}" in source) and _pieces(source) is None:
        return f"has a brace without its partner: {source!r}; expected {{column}}, and {{{{ for a brace"
    return ""


def _value(values: Mapping[str, Any], source: str, field: str) -> Any:
    if source in values:
        return values[source]
    pieces = _pieces(source) if "{" in source or "}" in source else None
    if pieces is None:
        return _at(values, source, field)
    return "".join(piece if plain else _filled(values, piece, field) for plain, piece in pieces)


def _filled(values: Mapping[str, Any], path: str, field: str) -> str:
    found = values[path] if path in values else _at(values, path, field)
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        raise BadRowError(f"columns.{field}: expected text or a number in {path}, found {kind_of(found)}")
    return str(found)


def _at(values: Mapping[str, Any], path: str, field: str) -> Any:
    found: Any = values
    for number, key in enumerate(steps := path.split(".")):
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            where = ".".join(steps[:number])
            inside = f"{where} is {_shown(found)}" if where else f"the row's columns are {names(sorted(values))[:200]}"
            raise BadRowError(f"columns.{field}={path}: there is no {key}: {inside}")
    return found


def _shown(found: Any) -> str:
    if isinstance(found, dict):
        return f"an object with {names(map(str, found))[:200] or 'nothing'}"
    return f"a list of {len(found)}" if isinstance(found, list) else kind_of(found)


@lru_cache(maxsize=256)
def _pieces(source: str) -> tuple[tuple[bool, str], ...] | None:
    """Pieces with whether they are plain text, or else a path; None = braces that don't match."""
    found, end = [], 0
    while end < len(source):
        match = _PIECE.match(source, end)
        if match is None:
            return None
        name = match["name"]
        found.append((name is None, name or match["text"] or match["brace"][0]))
        end = match.end()
    return tuple(found)
