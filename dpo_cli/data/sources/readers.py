"""Which reader a file's name asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dpo_cli.data.sources import arrow_rows, csv_rows, json_rows
from dpo_cli.data.sources.row import Row
from dpo_cli.data.sources.streams import PACKED, File


class Reader(NamedTuple):
    """How files of one ending are read."""

    family: str
    """Files of one family can lie beside each other; of two, one is likely not meant."""
    rows: Callable[[File], Iterator[Row]]
    count: Callable[[File], int]
    knows_count: bool = False
    """Whether the file says how many rows it has."""


_TEXT = {
    ".jsonl": Reader("JSON", json_rows.line_rows, json_rows.count_lines),
    ".json": Reader("JSON", json_rows.list_rows, json_rows.count_list),
    ".csv": Reader("csv", csv_rows.rows, csv_rows.count),
    ".tsv": Reader("csv", csv_rows.rows, csv_rows.count),
}
_TABLES = {
    ".parquet": Reader("parquet", arrow_rows.parquet_rows, arrow_rows.count_parquet, knows_count=True),
    ".arrow": Reader("Arrow", arrow_rows.arrow_rows, arrow_rows.count_arrow, knows_count=True),
    ".feather": Reader("Arrow", arrow_rows.arrow_rows, arrow_rows.count_arrow, knows_count=True),
}
_READERS = _TABLES | {ending + packed: reader for ending, reader in _TEXT.items() for packed in ("", *PACKED)}
ENDINGS = tuple(_READERS)
EXPECTED = f"{', '.join(_TEXT)} (or one of these with {' or '.join(PACKED)}), {' or '.join(_TABLES)}"


def reader_of(name: str) -> Reader | None:
    """The reader of a file of this name; None if there is none."""
    return next((reader for ending, reader in _READERS.items() if name.lower().endswith(ending)), None)
