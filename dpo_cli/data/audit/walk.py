"""All rows of a source and the facts of each, with what is wrong with some collected instead of raised."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from dpo_cli.data.audit.again import lost_text, merges
from dpo_cli.data.audit.facts import Facts, facts_of
from dpo_cli.data.build import Counts, Recipe, encode, usable
from dpo_cli.data.load import Loader
from dpo_cli.data.pool import by_chunks
from dpo_cli.data.sources import Row, Source
from dpo_cli.data.tokenize import Encoded
from dpo_cli.data.types import Group

_SAMPLE = 25
"""Rows of each chunk whose prompts and answers are tokenised once more, as one text."""


class _Chunk(NamedTuple):
    facts: list[Facts]
    counts: Counts


def walk(source: Source, recipe: Recipe, loader: Loader, counts: Counts) -> Iterator[Facts]:
    """The facts of each row that can be used, in order.

    Args:
        source: of rows.
        recipe: what is made of them.
        loader: tokenizer, processes, progress.
        counts: filled in.

    Raises:
        DpoError: the source can't be read, or its rows and the tokenizer don't go together at all.
    """
    work = partial(_look, recipe=recipe, tokenizer=loader.tokenizer, ends=[])
    with loader.phase(f"inspect {source.name}", source.total, "rows") as advance:
        for chunk in by_chunks(islice(source.rows(), recipe.limit), work, loader.workers):
            counts.add(chunk.counts)
            advance(chunk.counts.read)
            yield from chunk.facts


def groups_at(source: Source, places: Collection[str], recipe: Recipe, loader: Loader) -> list[Group]:
    """The Groups of some rows, by where these stand, in order; reading ends with the last of them."""
    rows = (row for row in source.rows() if row.source in places)
    encoded = _encode(list(islice(rows, len(places))), recipe, loader.tokenizer, [], Counts())
    return [each.group for each in encoded if each.group is not None]


def _look(rows: Sequence[Row], recipe: Recipe, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> _Chunk:
    """Some rows as training would read them; ``ends`` as for ``encode_rows``."""
    counts = Counts()
    encoded = _encode(rows, recipe, tokenizer, ends, counts)
    sample = [place for place, each in enumerate(encoded) if not each.rendered.hidden][:_SAMPLE]
    merged = dict(zip(sample, merges([encoded[place] for place in sample], tokenizer), strict=True))
    lost = lost_text(encoded, tokenizer)
    return _Chunk([facts_of(each, lost[place], merged.get(place)) for place, each in enumerate(encoded)], counts)


def _encode(
    rows: Sequence[Row], recipe: Recipe, tokenizer: PreTrainedTokenizerBase, ends: list[int], counts: Counts
) -> list[Encoded]:
    examples = list(usable(rows, recipe, counts, wrong_kind="count"))
    return encode(examples, recipe, tokenizer, ends, counts) if examples else []
