"""Rows from where they are kept: a file, a folder of files, or a data set on the hub.

JSON is read here and not by ``datasets``, so that trouble has a file and a line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from dpo_cli.errors import DataError, DpoError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows are kept."""

    path: str
    """A file, a folder or pattern of files, a URL, or a hub id."""
    split: str = "train"
    subset: str | None = None
    """The hub data set's configuration; None = its default."""
    revision: str | None = None
    """Branch, tag or commit; None = the newest."""
    streaming: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is kept, before anything is known of its columns."""

    source: str
    """``pairs.jsonl, line 12`` or ``HuggingFaceH4/ultrafeedback_binarized train, row 12``; counted from 1."""
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
    """Reads from the start, each time it is called, in bounded memory."""
    total: int | None = None
    """How many rows, where that is known before reading; for progress."""


def read_rows(
    path: str, *, split: str, subset: str | None, revision: str | None, key: str = "data.path"
) -> Iterator[Row]:
    """The rows of a file, of a folder's files in the order of their names, or of a hub data set.

    Args:
        path: a file or folder here, else a hub id.
        split: of a hub data set, as are the next two; files have none.
        subset: the hub data set's configuration; None = its default.
        revision: branch, tag or commit; None = the newest.
        key: the configuration key that ``path`` comes from, for messages.

    Raises:
        DataError: at once where there is no file to read; while iterating where a file is damaged or the hub data set
            can't be loaded.
    """
    if not is_local(path):
        return _hub_rows(path, split, subset, revision, key)
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"{key}={path}: there is no such file or folder")
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.name.endswith(ENDINGS) and file.is_file())
        if not files:
            raise DataError(f"{key}={path}: no file in this folder ends in {_one_of(ENDINGS)}")
        return (row for file in files for row in _file_rows(file))
    if not place.name.endswith(ENDINGS):
        raise DataError(f"{key}={path}: the file's name should end in {_one_of(ENDINGS)}")
    return _file_rows(place)


def open_source(place: Place, *, key: str, cache: Path) -> Source:
    """TODO replaced by the sources branch."""
    rows = lambda: read_rows(place.path, split=place.split, subset=place.subset, revision=place.revision, key=key)  # noqa: E731
    rows()
    path = Path(place.path).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    identity = [
        [f.name, f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_ino] if f.exists() else str(place) for f in files
    ]
    return Source(f"{key}={place.path}", identity, rows)


def is_local(path: str) -> bool:
    """Whether ``path`` is a file or folder, there or not, rather than a hub id."""
    return path.startswith((".", "/", "~")) or path.endswith(ENDINGS) or Path(path).exists()


def _file_rows(path: Path) -> Iterator[Row]:
    if path.name.endswith(".parquet"):
        return _parquet_rows(path)
    return _json_rows(path)


def _json_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            if path.name.endswith((".json", ".json.gz")) and _opens_list(file):
                for number, values in enumerate(_parse(file.read(), path.name), start=1):
                    yield _row(f"{path.name}, row {number}", values)
                return
            for number, line in enumerate(file, start=1):
                if line.removeprefix(_BOM).strip():
                    source = f"{path.name}, line {number}"
                    yield _row(source, _parse(line.rstrip(), source))
    except (OSError, EOFError, zlib.error) as error:
        # The last two are gzip's, for a file that is cut off or damaged.
        raise DataError(f"{path.name}: can't be read after line {number} ({error})") from error


def _opens_list(file: BufferedIOBase) -> bool:
    """Whether the first character that counts is ``[``. The file stands at its start before and after."""
    contents = (line.removeprefix(_BOM).strip() for line in file)
    first = next((content for content in contents if content), b"")
    file.seek(0)
    return first.startswith(b"[")


def _parse(content: bytes, source: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not valid UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(f"{source}: not valid JSON ({error.msg} at {line}column {error.colno})") from error


def _row(source: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise DataError(f"{source}: expected an object, found {type(values).__name__}")
    return Row(source, values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}, row {number}", values)
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: can't be read as parquet ({_first_line(error)})") from error


def _hub_rows(path: str, split: str, subset: str | None, revision: str | None, key: str) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(path, name=subset, split=split, revision=revision)
    except DpoError:  # a signal
        raise
    except Exception as error:
        # Network, hub, cache and parsing libraries raise here whatever they like, with no common base.
        raise DataError(
            f"{key}={path}: there is no such file or folder here, and as a hub data set it can't be loaded "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{path} {split}, row {number}", values)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
