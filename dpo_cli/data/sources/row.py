"""The words in which sources are spoken of: where rows are kept, rows, and rows that can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows are kept."""

    path: str
    """A file, a folder or pattern of files, a URL, or a hub id."""
    split: str = "train"
    """A split's name, or parts of splits: see ``splits``."""
    subset: str | None = None
    """The hub data set's configuration; None = its default."""
    revision: str | None = None
    """Branch, tag or commit; None = the newest."""
    streaming: bool = False
    """Read a hub data set as it comes, without keeping it on the disk. Files are always read so."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is kept, before anything is known of its columns."""

    source: str
    """``pairs.jsonl, line 12`` or ``HuggingFaceH4/ultrafeedback_binarized train, row 12``; counted from 1, in the whole
    file or split even where only a part of it is read."""
    values: dict[str, Any]
    problem: str = ""
    """Why the row can't be read (not valid JSON, say); then ``values`` is empty."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that can be read, and what they are."""

    name: str
    """For messages: ``data.path=pairs.jsonl``."""
    identity: Any
    """JSON-able; the same if and only if the rows are, in the same order."""
    rows: Callable[[], Iterator[Row]]
    """Reads from the start, each time it is called, in bounded memory. Raises DataError where a file is damaged."""
    total: int | None = None
    """How many rows, where that is known before reading; for progress."""
    commit: str | None = None
    """Of a hub data set, what its revision is at."""


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def one_of(names: list[str]) -> str:
    """``a, b or c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
