"""From a place to rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dpo_cli.data.sources.hub import hub_source
from dpo_cli.data.sources.local import is_local, local_files
from dpo_cli.data.sources.readers import Reader, reader_of
from dpo_cli.data.sources.row import Place, Row, Source, first_line, one_of
from dpo_cli.data.sources.splits import Part, parse_split
from dpo_cli.data.sources.streams import File
from dpo_cli.data.sources.urls import is_url, url_files
from dpo_cli.errors import DataError, DpoError


def open_source(place: Place, *, key: str, cache: Path) -> Source:
    """Find a place's rows and what they depend on; files are hashed, and rows read later.

    Args:
        place: a file, a folder, a pattern of files, a URL, or a hub id.
        key: the configuration key that the path comes from, for messages.
        cache: folder where the hashes of files are remembered.

    Raises:
        DataError: there is nothing to read, it can't be reached, or it has no such split.
    """
    name = f"{key}={place.path}"
    if not (is_local(place.path) or is_url(place.path)):
        return hub_source(place, name)
    table = _table(place, name)
    return Source(name, _identity(table, name, cache), partial(_rows, table), _total(table))


@dataclass(frozen=True, slots=True)
class _Files:
    """One part of the rows: some of those in a split's files."""

    part: Part
    files: list[tuple[File, Reader]]

    def count(self) -> int:
        """How many rows the split has."""
        return sum(reader.count(file) for file, reader in self.files)

    def rows(self) -> Iterator[Row]:
        """The part's rows."""
        rows = chain.from_iterable(reader.rows(file) for file, reader in self.files)
        return rows if self.part.whole else islice(rows, *self.part.bounds(self.count))

    def total(self) -> int | None:
        """How many rows the part has, where the files say so."""
        if not all(reader.knows_count for _, reader in self.files):
            return None
        count = self.count()
        return len(range(count)[slice(*self.part.bounds(lambda: count))])


def _table(place: Place, name: str) -> list[_Files]:
    parts = parse_split(place.split, name)
    splits = (url_files if is_url(place.path) else local_files)(place.path, name)
    unknown = [part.split for part in parts if part.split not in splits]
    if unknown:
        raise DataError(f"{name}: found no split {unknown[0]!r}: expected {one_of(sorted(splits))}")
    return [
        _Files(part, [(file, reader) for file in splits[part.split] if (reader := reader_of(file.name))])
        for part in parts
    ]


def _rows(table: list[_Files]) -> Iterator[Row]:
    return chain.from_iterable(files.rows() for files in table)


def _total(table: list[_Files]) -> int | None:
    try:
        totals = [files.total() for files in table]
    except DataError:  # which reading will meet again, and say after which row
        return None
    return None if None in totals else sum(total for total in totals if total is not None)


def _identity(table: list[_Files], name: str, cache: Path) -> Any:
    try:
        return [
            {"split": str(files.part), "files": [[file.name, file.version(cache)] for file, _ in files.files]}
            for files in table
        ]
    except DpoError:  # a signal
        raise
    except Exception as error:
        # Of a store's library, which raises what it likes, or of the file system.
        raise DataError(f"{name}: can't be read ({first_line(error)})") from error
