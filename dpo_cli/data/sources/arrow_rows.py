"""Rows from parquet and Arrow files (IPC files, which are Feather's second version, and IPC streams)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow
import pyarrow.parquet

from dpo_cli.data.sources.row import Row, first_line
from dpo_cli.data.sources.streams import File, damage, not_text, open_raw
from dpo_cli.errors import DataError

_BATCH_ROWS = 1000
_BATCH_BYTES = 16 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
Decoder = Callable[[Any], Any]


def parquet_rows(file: File) -> Iterator[Row]:
    """A parquet file's rows, a few megabytes at a time.

    Raises:
        DataError: the file is damaged, or two columns have one name.
    """
    number = 0
    with damage(file, lambda: f"row {number}"), ExitStack() as stack:
        parquet = _parquet(file, stack)
        _check_names(parquet.schema_arrow, file)
        size = sum(parquet.metadata.row_group(group).total_byte_size for group in range(parquet.num_row_groups))
        batches = parquet.iter_batches(batch_size=_batch_rows(size, parquet.metadata.num_rows))
        for row in _rows(file, batches, parquet.schema_arrow):
            number += 1
            yield row


def count_parquet(file: File) -> int:
    """How many rows, by the file's own account."""
    with damage(file), ExitStack() as stack:
        return int(_parquet(file, stack).metadata.num_rows)


def _parquet(file: File, stack: ExitStack) -> Any:
    stream = stack.enter_context(open_raw(file))
    head = stream.peek(64)[:64]
    if not head.startswith((b"PAR1", b"PARE")):
        raise DataError(f"{file.name}: this is no parquet file: {_what(head, but='PAR1')}")
    return stack.enter_context(pyarrow.parquet.ParquetFile(stream))


def arrow_rows(file: File) -> Iterator[Row]:
    """An Arrow file's or stream's rows.

    Raises:
        DataError: the file is damaged, or two columns have one name.
    """
    number = 0
    with damage(file, lambda: f"row {number}"), ExitStack() as stack:
        schema, batches = _arrow(file, stack)
        _check_names(schema, file)
        for row in _rows(file, _small(batches), schema):
            number += 1
            yield row


def count_arrow(file: File) -> int:
    """How many rows; their values are not looked at."""
    with damage(file), ExitStack() as stack:
        return sum(batch.num_rows for batch in _arrow(file, stack)[1])


def _arrow(file: File, stack: ExitStack) -> tuple[Any, Iterator[Any]]:
    stream = stack.enter_context(open_raw(file))
    head = stream.peek(64)[:64]
    if head.startswith(b"FEA1"):
        raise DataError(f"{file.name}: this is Feather's first version, which isn't read: write it anew")
    is_file = head.startswith(b"ARROW1")
    if not is_file and not head.startswith(b"\xff\xff\xff\xff"):
        raise DataError(f"{file.name}: this is no Arrow file or stream: {_what(head, but='ARROW1')}")
    if not is_file:
        # A stream that is cut between two batches can be told from a whole one only by this.
        stream.seek(-len(_END_OF_STREAM), 2)
        if stream.read() != _END_OF_STREAM:
            raise DataError(f"{file.name}: the Arrow stream has no end mark: it is cut off, copy or download it again")
    stream.seek(0)
    source = stack.enter_context(pyarrow.memory_map(str(file.path))) if file.path else stream
    if is_file:
        reader = stack.enter_context(pyarrow.ipc.open_file(source))
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    reader = stack.enter_context(pyarrow.ipc.open_stream(source))
    return reader.schema, iter(reader)


def _what(head: bytes, *, but: str) -> str:
    what = not_text(head)
    if what and but.encode() not in head[:8]:
        return f"it is {what}"
    return "it looks like text, so its name should end in .jsonl, .json or .csv" if head.isascii() else "it is damaged"


def _small(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate()  # its size is computed from what may be damaged
        size = _batch_rows(batch.nbytes, batch.num_rows)
        yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))


def _batch_rows(size: int, rows: int) -> int:
    """How many rows to turn into Python values at once, so that they take a few megabytes."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _check_names(schema: Any, file: File) -> None:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{file.name}: two columns are called {twice[0]!r}: each needs a name of its own")


def _rows(file: File, batches: Iterator[Any], schema: Any) -> Iterator[Row]:
    decoders = {field.name: decoder for field in schema if (decoder := _decoder(field.type))}
    number = 0
    for batch in batches:
        for values, problem in _values(batch):
            number += 1
            for name, decoder in decoders.items():
                if not problem:
                    try:
                        values[name] = decoder(values[name])
                    except ValueError as error:
                        problem = f"{name}: not valid JSON ({first_line(error)})"
            yield Row(f"{file.name}, row {number}", {} if problem else values, problem)


def _values(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Values and problem of each row."""
    try:
        # Arrow believes what a file says of where texts start and end; a damaged one could point anywhere.
        batch.validate(full=True)
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is no UTF-8, a date beyond Python's: only some rows' matter
        for number in range(batch.num_rows):
            yield _value(batch.slice(number, 1))
    else:
        yield from ((row, "") for row in rows)


def _value(row: Any) -> tuple[dict[str, Any], str]:
    try:
        row.validate(full=True)
        return row.to_pylist()[0], ""
    except (ValueError, OverflowError) as error:
        what = first_line(error)
        return {}, "not valid UTF-8" if "UTF8" in what else f"a value that can't be read ({what})"


def _decoder(kind: Any) -> Decoder | None:
    """What turns JSON text into values, for types that hold such text somewhere; None for the others."""
    if isinstance(kind, pyarrow.JsonType):
        return _or_none(json.loads)
    if pyarrow.types.is_struct(kind):
        inner = {field.name: decoder for field in kind if (decoder := _decoder(field.type))}
        if not inner:
            return None
        return _or_none(lambda values: {name: inner.get(name, _same)(value) for name, value in values.items()})
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        item = _decoder(kind.value_type)
        return None if item is None else _or_none(lambda values: [item(value) for value in values])
    return None


def _or_none(decoder: Decoder) -> Decoder:
    return lambda value: None if value is None else decoder(value)


def _same(value: Any) -> Any:
    return value
