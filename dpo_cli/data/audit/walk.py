"""All rows of a source, one by one, with what is wrong with some collected instead of raised."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from dpo_cli.data.build import CHUNK, Counts, Recipe, first_ends, tokenized, usable
from dpo_cli.data.sources import Source
from dpo_cli.data.tokenize import Encoded


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
    examples = usable(islice(source.rows(), recipe.limit), recipe, counts, wrong_kind="count")
    ends: list[int] = []
    while chunk := list(islice(examples, CHUNK)):
        ends = ends or first_ends(chunk, tokenizer, recipe.encoding)
        for encoded in tokenized(chunk, tokenizer, recipe, ends, counts):
            counts.add_encoded(encoded)
            yield encoded
