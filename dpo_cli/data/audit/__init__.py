"""What is in a data set, and what that does to training: ``dpo inspect`` without its looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from dpo_cli.data.audit.findings import NAMES, findings
from dpo_cli.data.audit.result import Result
from dpo_cli.data.audit.side import Measured
from dpo_cli.data.audit.walk import walk
from dpo_cli.data.build import Counts, prompt_key, usable
from dpo_cli.data.holdout import hold_out
from dpo_cli.data.load import Loader, Part
from dpo_cli.data.sources import Source, open_source
from dpo_cli.data.tokenize import Encoded
from dpo_cli.data.types import Group

__all__ = ["NAMES", "audit"]


def audit(
    parts: Sequence[Part],
    held_out: Part | float | None,
    loader: Loader,
    *,
    seed: int,
    show: int,
    model: str,
    data: str,
) -> tuple[Result, list[Group]]:
    """Read everything once more than training would, and measure it.

    Sources of a mixture are measured whole, whatever part of them is drawn.

    Args:
        parts: what is trained on.
        held_out: as for ``load_data``.
        loader: tokenizer, caches, progress.
        seed: which prompts are held out.
        show: how many training Groups to return.
        model, data: names, for the result.

    Raises:
        DpoError: sources that can't be read, or nothing in them can be used.
    """
    sources = [(open_source(part.place, key=part.key, cache=loader.folder), part) for part in parts]
    train = Measured()
    held = None if held_out is None else Measured()
    out: set[int] = set()
    if isinstance(held_out, float):
        keys = [prompt_key(example) for source, part in sources for example in _examples(source, part)]
        out = {key for key, chosen in zip(keys, hold_out(np.array(keys), held_out, seed), strict=True) if chosen}
    elif held_out is not None and held is not None:
        source = open_source(held_out.place, key=held_out.key, cache=loader.folder)
        _measure(_walk(source, held_out, loader, held.counts), held, loader, source)
        out = held.prompts
    shown: list[Group] = []
    for source, part in sources:
        for encoded in _told(_walk(source, part, loader, train.counts), loader, source):
            if prompt_key(encoded.example) not in out:
                train.add(encoded)
                if encoded.group is not None and len(shown) < show:
                    shown.append(encoded.group)
            elif isinstance(held_out, float) and held is not None:
                held.add(encoded)
            else:
                train.see("in-both-sides", encoded.example.source)
    stops = any(part.recipe.on_bad_row == "raise" for part in parts)
    sides = train.result(), None if held is None else held.result()
    return Result(1, model, data, *sides, findings(train, held, stops=stops)), shown


def _examples(source: Source, part: Part) -> Iterable:
    return usable(islice(source.rows(), part.recipe.limit), part.recipe, Counts(), wrong_kind="count")


def _walk(source: Source, part: Part, loader: Loader, counts: Counts) -> Iterator[Encoded]:
    return walk(source, part.recipe, loader.tokenizer, counts)


def _measure(rows: Iterator[Encoded], side: Measured, loader: Loader, source: Source) -> None:
    for encoded in _told(rows, loader, source):
        side.add(encoded)


def _told(rows: Iterator[Encoded], loader: Loader, source: Source) -> Iterator[Encoded]:
    """The same, with progress."""
    with loader.phase(f"inspect {source.name}", source.total, "rows") as advance:
        for encoded in rows:
            yield encoded
            advance(1)
