"""Rows from comma- or tab-separated text. The first line names the columns; every value stays text.

Nothing is guessed of a value: a list is its JSON text, a number its digits, an empty field an empty text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import NoReturn

from dpo_cli.data.sources.row import Row
from dpo_cli.data.sources.streams import File, damage, open_text
from dpo_cli.errors import DataError

_LONGEST_FIELD = 1 << 28
_LONGEST_NAME = 200


def rows(file: File) -> Iterator[Row]:
    """A row for each record; one may go over several lines, and is named by its first.

    Raises:
        DataError: no header, quotes that don't fit together (where the next record starts is then not known), or a
            file that can't be read.
    """
    header: list[str] | None = None
    for line, fields in _records(file):
        if header is None:
            header = _checked_header(fields, file)
            continue
        problem = _problem(fields, header)
        values = {} if problem else dict(zip(header, fields, strict=True))
        yield Row(f"{file.name}, line {line}", values, problem)
    if header is None:
        raise DataError(f"{file.name}: the file is empty: expected a line with the names of the columns")


def count(file: File) -> int:
    """How many rows ``rows`` gives."""
    return max(0, sum(1 for _ in _records(file)) - 1)


def _records(file: File) -> Iterator[tuple[int, list[str]]]:
    """Records and the lines they start on; blank lines don't count."""
    delimiter = "\t" if ".tsv" in file.name.lower()[-8:] else ","
    line = 0
    with damage(file, lambda: f"line {line}"), open_text(file) as stream:
        # Bytes that are no UTF-8 become surrogates, so that the damage stays in its row.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        csv.field_size_limit(_LONGEST_FIELD)
        records = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for fields in records:
                if fields:
                    yield line + 1, fields
                line = records.line_num
        except csv.Error as error:
            _refuse_quotes(file, line + 1, error)


def _refuse_quotes(file: File, line: int, error: csv.Error) -> NoReturn:
    what = str(error)
    if what.startswith(("unexpected end", "field larger")):
        what = "a quote is opened and never closed"
    raise DataError(
        f"{file.name}: the record that starts on line {line} can't be read ({what}): a field with quotes in it must be "
        'in quotes itself, with each of them doubled ("")'
    ) from error


def _checked_header(names: list[str], file: File) -> list[str]:
    name = f"{file.name}, line 1"
    if problem := _problem(names, [f"column {number}" for number in range(1, len(names) + 1)]):
        raise DataError(f"{name}: {problem}: save the file as UTF-8")
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        kind = "; (semicolons)" if ";" in names[0] else "tabs: its name should end in .tsv"
        raise DataError(f"{name}: expected commas between the columns, found {kind}")
    if any(len(column) > _LONGEST_NAME or "\n" in column for column in names):
        raise DataError(f"{name}: expected the names of the columns, found long text: add a line with the names")
    empty = [number for number, column in enumerate(names, start=1) if not column.strip()]
    # pandas writes its index into a first column without a name.
    if [number for number in empty if number > 1]:
        raise DataError(f"{name}: column {empty[-1]} has no name")
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise DataError(f"{name}: two columns are called {twice[0]!r}: each needs a name of its own")
    return names


def _problem(fields: list[str], header: list[str]) -> str:
    if len(fields) != len(header):
        return f"{len(fields)} fields, expected {len(header)} as in the first line: is a comma outside quotes?"
    for column, field in zip(header, fields, strict=True):
        if "\0" in field:
            return f"{column}: a zero byte"
        try:
            field.encode()
        except UnicodeEncodeError:
            return f"{column}: not valid UTF-8"
    return ""
