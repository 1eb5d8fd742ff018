"""Groups on disk: written as they come, read through a memory map, so that a set may be larger than memory.

A table is a folder with ``rows.arrow`` (Arrow's file format, record batches of hundreds of rows) and ``table.json``
(what the rows are, and size and hash of the other file). Groups are made when they are asked for; their tokens lie in
the map.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow
from numpy.typing import NDArray

from dpo_cli.data.types import Group, Pair
from dpo_cli.file_hash import sha256
from dpo_cli.whole_folder import naming, write_file

Keys = NDArray[np.int64]
"""Hashes of content, one per row."""

_SCHEMA = pyarrow.schema(
    {
        "tokens": pyarrow.list_(pyarrow.int32()),  # the prompt's, then each answer's
        "lengths": pyarrow.list_(pyarrow.int32()),  # of the prompt and of each answer
        "scored": pyarrow.list_(pyarrow.bool_()),  # of the answers' tokens; null = all
        "said": pyarrow.string(),  # what is preferred, as JSON
        "source": pyarrow.string(),
        "question": pyarrow.string(),
        "prompt_key": pyarrow.int64(),
        "content_key": pyarrow.int64(),
    }
)
_ROWS = "rows.arrow"
_TABLE = "table.json"


def to_batch(groups: Sequence[Group], prompt_keys: Sequence[int], content_keys: Sequence[int]) -> pyarrow.RecordBatch:
    """Groups, with the hashes of their prompts and of all their content, as rows of a table."""
    return pyarrow.RecordBatch.from_arrays(
        [
            _lists([np.concatenate([group.prompt_ids, *group.answers]) for group in groups], np.int32),
            _lists([np.array([len(group.prompt_ids), *map(len, group.answers)]) for group in groups], np.int32),
            pyarrow.array([np.concatenate(group.scored) if group.scored else None for group in groups]).cast(
                _SCHEMA.field("scored").type
            ),
            pyarrow.array([_said(group) for group in groups]),
            pyarrow.array([group.source for group in groups]),
            pyarrow.array([group.question for group in groups]),
            pyarrow.array(prompt_keys, pyarrow.int64()),
            pyarrow.array(content_keys, pyarrow.int64()),
        ],
        schema=_SCHEMA,
    )


def _lists(arrays: Sequence[NDArray], dtype: Any) -> pyarrow.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)])
    return pyarrow.ListArray.from_arrays(offsets.astype(np.int32), np.concatenate(arrays).astype(dtype))


def _said(group: Group) -> str:
    return json.dumps([group.pairs, group.labels, group.ranks, group.weight])


class TableWriter:
    """A table in the making: ``add`` rows, ``close``, and ``finish``; then the folder is complete."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: exists, and is empty.
        """
        self._folder = folder
        self._file = pyarrow.OSFile(str(folder / _ROWS), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, _SCHEMA)

    def add(self, batch: pyarrow.RecordBatch) -> None:
        """Append rows."""
        if batch.num_rows:
            with naming(self._folder):
                self._writer.write_batch(batch)

    def finish(self, facts: dict[str, Any]) -> None:
        """Keep what is known of the table, which is closed."""
        rows = self._folder / _ROWS
        table = {"facts": facts, "bytes": rows.stat().st_size, "sha256": sha256(rows)}
        write_file(self._folder / _TABLE, json.dumps(table))

    def close(self) -> None:
        """Let go of the file, complete or not."""
        with naming(self._folder):
            self._writer.close()
            self._file.close()


@dataclass(frozen=True)
class _Batch:
    """Views of one record batch."""

    rows: pyarrow.RecordBatch

    @cached_property
    def tokens(self) -> tuple[NDArray, NDArray]:
        """Values, and where each row's begin."""
        return _view(self.rows.column("tokens"))

    @cached_property
    def lengths(self) -> tuple[NDArray, NDArray]:
        """Of prompt and answers; and where each row's begin."""
        return _view(self.rows.column("lengths"))

    @cached_property
    def said(self) -> pyarrow.StringArray:
        """What is preferred."""
        return self.rows.column("said")

    @cached_property
    def texts(self) -> tuple[pyarrow.StringArray, pyarrow.StringArray]:
        """Sources and questions."""
        return self.rows.column("source"), self.rows.column("question")

    @cached_property
    def scored(self) -> pyarrow.ListArray | None:
        """Which of the answers' tokens are scored; None = all, in every row."""
        column = self.rows.column("scored")
        return None if column.null_count == len(column) else column

    def group(self, row: int) -> Group:
        lengths, starts = self.lengths
        sizes = lengths[starts[row] : starts[row + 1]].tolist()
        tokens, starts = self.tokens
        prompt, *answers = _cut(tokens, starts[row], sizes)
        scored = None if self.scored is None else self.scored[row]
        pairs, labels, ranks, weight = json.loads(self.said[row].as_py())
        sources, questions = self.texts
        return Group(
            prompt_ids=prompt,
            answers=tuple(answers),
            pairs=tuple(Pair(*pair) for pair in pairs),
            source=sources[row].as_py(),
            question=questions[row].as_py(),
            labels=tuple(labels),
            ranks=tuple(ranks),
            weight=weight,
            scored=tuple(_cut(_bools(scored), 0, sizes[1:])) if scored is not None and scored.is_valid else (),
        )


def _cut(values: NDArray, start: int, sizes: Sequence[int]) -> list[NDArray]:
    """Consecutive parts."""
    ends = list(accumulate(sizes, initial=int(start)))
    return [values[first:end] for first, end in pairwise(ends)]


def _view(column: pyarrow.ListArray) -> tuple[NDArray, NDArray]:
    return column.values.to_numpy(), column.offsets.to_numpy()


def _bools(scored: pyarrow.ListScalar) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = scored.values.to_numpy(zero_copy_only=False)
    return flags


class Table:
    """A table on disk."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.facts = facts
        """What ``TableWriter.finish`` was given."""
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / _ROWS)))
        self._batches = [_Batch(reader.get_batch(number)) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.rows.num_rows for batch in self._batches)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Group:
        number = bisect.bisect_right(self._starts, row) - 1
        return self._batches[number].group(row - self._starts[number])

    def keys(self, column: str) -> Keys:
        """``prompt_key`` or ``content_key`` of every row."""
        columns = [batch.rows.column(column).to_numpy() for batch in self._batches]
        return np.concatenate(columns) if columns else np.zeros(0, np.int64)


def open_table(folder: Path) -> tuple[Table | None, str]:
    """A complete, undamaged table; or None, and what is wrong with what is there (nothing, if nothing is there)."""
    try:
        about = json.loads((folder / _TABLE).read_text(encoding="utf-8"))
        rows = folder / _ROWS
        if rows.stat().st_size != about["bytes"] or sha256(rows) != about["sha256"]:
            return None, f"{rows} is not as it was written"
        return Table(folder, about["facts"]), ""
    except FileNotFoundError as error:
        return None, f"{error.filename} is missing" if folder.exists() else ""
    except (ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        return None, f"{folder} is damaged ({error})"


class Groups(Sequence[Group]):
    """Some rows of some tables, as a list of Groups that are made when they are asked for."""

    def __init__(self, tables: Sequence[Sequence[Group] | Table], index: NDArray[np.int64] | None = None) -> None:
        """
        Args:
            tables: end to end.
            index: which of all their rows, in which order; None = all.
        """
        self._tables = list(tables)
        self._starts = np.cumsum([0, *map(len, self._tables)]).tolist()
        self.chosen = np.arange(self._starts[-1]) if index is None else index
        """Which of all their rows, in which order."""

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, place: int) -> Group: ...
    @overload
    def __getitem__(self, place: slice) -> Groups: ...
    def __getitem__(self, place: int | slice) -> Group | Groups:
        if isinstance(place, slice):
            return Groups(self._tables, self.chosen[place])
        row = int(self.chosen[place])
        number = bisect.bisect_right(self._starts, row) - 1
        return self._tables[number][row - self._starts[number]]

    def __iter__(self) -> Iterator[Group]:
        return (self[place] for place in range(len(self)))

    def count_by_table(self) -> list[int]:
        """Rows taken of each."""
        bounds = zip(self._starts, self._starts[1:], strict=False)
        return [int(((self.chosen >= first) & (self.chosen < end)).sum()) for first, end in bounds]

    def select(self, chosen: NDArray[np.bool_]) -> Groups:
        """Those for which it is true, in order."""
        return Groups(self._tables, self.chosen[chosen])
