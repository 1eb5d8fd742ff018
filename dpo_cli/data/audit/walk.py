"""All rows of a source, one by one, with what is wrong with some collected instead of raised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from dpo_cli.data.build import CHUNK, SHOWN, Counts, Recipe, first_ends, tokenized
from dpo_cli.data.formats import BadRowError, to_example
from dpo_cli.data.kinds import WrongKindError, fit
from dpo_cli.data.sources import Row, Source
from dpo_cli.data.tokenize import Encoded
from dpo_cli.data.types import Example


def usable(rows: Iterable[Row], recipe: Recipe, counts: Counts) -> Iterator[Example]:
    """The rows that say something the loss can use; the others are counted."""
    for row in rows:
        counts.read += 1
        try:
            example = fit(recipe.kind, to_example(row, recipe.reading))
        except (BadRowError, WrongKindError) as problem:
            counts.add_bad(f"{row.source}: {problem}")
            continue
        if example is None:
            counts.without_preference += 1
        else:
            yield example


def walk(source: Source, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, counts: Counts) -> Iterator[Encoded]:
    """What becomes of each row that can be used.

    Args:
        source: of rows.
        recipe: what is made of them.
        tokenizer: the model's.
        counts: filled in.

    Raises:
        DpoError: the source can't be read, or its rows and the tokenizer don't go together at all.
    """
    examples = usable(islice(source.rows(), recipe.limit), recipe, counts)
    ends: list[int] = []
    while chunk := list(islice(examples, CHUNK)):
        ends = ends or first_ends(chunk, tokenizer, recipe.encoding)
        for encoded in tokenized(chunk, tokenizer, recipe, ends, counts):
            counts.tokenized.add(encoded)
            if encoded.left_out == "too_long" and len(counts.too_long) < SHOWN:
                counts.too_long.append(str(encoded))
            yield encoded
