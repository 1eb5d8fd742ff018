"""What rows say beside prompt and answers: columns to tell them apart by, and how many turns they have.

Tables of tokens don't hold it, so the rows are read once more, which takes little beside scoring them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.rows import training_parts
from dpo_cli.config import DataConfig
from dpo_cli.data.formats import BadRowError, to_example
from dpo_cli.data.sources import open_source
from dpo_cli.data.types import Kind
from dpo_cli.errors import DataError
from dpo_cli.evaluation.slices import USUAL


def row_facts(
    data: DataConfig, kind: Kind, columns: Sequence[str] | None, wanted: Collection[str]
) -> dict[str, dict[str, Any]]:
    """By each row's source: its values of the columns, and ``turns``, of the user in its prompt.

    Args:
        data: where the rows are.
        kind: what the loss counts.
        columns: to be looked for; None = the usual ones. Lists and objects are no values to tell rows apart by.
        wanted: sources of the rows.

    Raises:
        DataError: a column that was named and that no row has.
    """
    names = tuple(USUAL if columns is None else columns)
    found: dict[str, dict[str, Any]] = {}
    folder = cache_folder(data.cache_dir)
    for part in training_parts(data, kind):
        rows = open_source(part.place, key=part.key, cache=folder).rows()
        for row in islice(rows, part.recipe.limit):
            if row.source not in wanted or row.source in found:
                continue
            values = {name: row.values.get(name) for name in names}
            facts = {name: value for name, value in values.items() if isinstance(value, str | int | float | bool)}
            try:
                prompt = to_example(row, part.recipe.reading).prompt
            except BadRowError:  # which the table has left out
                continue
            turns = 1 if isinstance(prompt, str) else sum(message["role"] == "user" for message in prompt)
            found[row.source] = {**facts, "turns": turns}
    if columns is not None:
        for name in columns:
            if found and not any(name in facts for facts in found.values()):
                raise DataError(f"no row has a value in the column {name!r}, which slices or benchmark asks for")
    return found
