"""Every row of a source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from dpo_cli.data.formats.example import to_example
from dpo_cli.data.formats.reading import AS_FOUND, BadRowError, Reading, content_hash
from dpo_cli.data.sources import Row
from dpo_cli.data.types import Example
from dpo_cli.errors import DataError

SHOWN = 10
"""Bad rows named in a message."""


@dataclass(frozen=True, slots=True)
class ReadCounts:
    """What became of the rows."""

    read: int
    bad: int
    """Left out."""
    duplicates: int
    """Rows whose prompt and answers stood in an earlier row. They are kept: repeating a row is a way to weigh it."""
    first_bad: tuple[str, ...]
    """Messages about the first ten bad rows."""


def read_examples(
    rows: Iterable[Row],
    *,
    limit: int | None,
    on_bad_row: Literal["raise", "skip"],
    name: str = "data",
    reading: Reading = AS_FOUND,
) -> tuple[list[Example], ReadCounts]:
    """Every row's Example, in order.

    Args:
        rows: from ``read_rows``.
        limit: read only so many rows; None = all.
        on_bad_row: stop at the tenth bad row or the end, with all of them in the message; or leave them out.
        name: of the data, for a message.
        reading: how.

    Raises:
        DataError: bad rows (``raise``), or no usable row.
    """
    examples: list[Example] = []
    seen: set[bytes] = set()
    problems: list[str] = []
    read = bad = 0
    for row in islice(rows, limit):
        read += 1
        try:
            example = to_example(row, reading)
        except BadRowError as problem:
            bad += 1
            if bad <= SHOWN:
                problems.append(f"{row.source}: {problem}")
            if on_bad_row == "raise" and bad == SHOWN:
                break
            continue
        examples.append(example)
        seen.add(content_hash([example.prompt, example.answers]))
    if bad and on_bad_row == "raise":
        summary = f"... {bad} bad row{'s' * (bad > 1)} in the first {read}"
        raise DataError("\n".join([*problems, f"{summary}; data.on_bad_row=skip leaves such rows out and counts them"]))
    if not examples:
        raise DataError("\n".join([*problems, f"{name}: no usable row: {read} read, {bad} bad"]))
    return examples, ReadCounts(read, bad, len(examples) - len(seen), tuple(problems))
