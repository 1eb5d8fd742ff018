"""What is in a data set, and what that does to training: ``dpo inspect`` without its looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dpo_cli.data.audit.findings import NAMES, findings
from dpo_cli.data.audit.result import Result
from dpo_cli.data.audit.side import Measured
from dpo_cli.data.audit.walk import walk
from dpo_cli.data.build import Counts, prompt_key
from dpo_cli.data.holdout import hold_out
from dpo_cli.data.load import Loader, Part, mixed
from dpo_cli.data.sources import Source, open_source
from dpo_cli.data.tokenize import Encoded
from dpo_cli.data.types import Group

__all__ = ["NAMES", "audit"]


def audit(
    parts: Sequence[Part],
    held_out: Part | float | None,
    loader: Loader,
    *,
    limit: int | None,
    seed: int,
    show: int,
    model: str,
    data: str,
) -> tuple[Result, list[Group]]:
    """Read everything as training would, and measure it.

    The sides are those of ``load_data``. But sources of a mixture are measured whole, whatever part of them is drawn.

    Args:
        parts: what is trained on.
        held_out: as for ``load_data``.
        loader: tokenizer, caches, progress.
        limit, seed: as for ``load_data``.
        show: how many training Groups to return.
        model, data: names, for the result.

    Raises:
        DpoError: sources that can't be read, or nothing in them can be used.
    """
    sources = [open_source(part.place, key=part.key, cache=loader.folder) for part in parts]
    train = Measured()
    held = None if held_out is None else Measured()
    out: set[int] = set()
    if isinstance(held_out, float):
        out = _held_out(parts, sources, held_out, loader, seed)
    elif held_out is not None and held is not None:
        source = open_source(held_out.place, key=held_out.key, cache=loader.folder)
        for encoded in _rows(source, held_out, loader, held.counts, "inspect"):
            held.add(encoded)
            if encoded.group is not None:
                out.add(prompt_key(encoded.example))
    shown: list[Group] = []
    for source, part in zip(sources, parts, strict=True):
        for encoded in _rows(source, part, loader, train.counts, "inspect"):
            is_out = prompt_key(encoded.example) in out
            if is_out and not isinstance(held_out, float):
                train.see("in-both-sides", encoded.example.source)
                continue
            side = held if is_out and held is not None else train
            if isinstance(held_out, float) and limit is not None and side.kept >= limit:
                continue
            side.add(encoded)
            if side is train and encoded.group is not None and len(shown) < show:
                shown.append(encoded.group)
    stops = any(part.recipe.on_bad_row == "raise" for part in parts)
    sides = train.result(), None if held is None else held.result()
    return Result(1, model, data, *sides, findings(train, held, stops=stops)), shown


def _held_out(parts: Sequence[Part], sources: Sequence[Source], fraction: float, loader: Loader, seed: int) -> set[int]:
    """Keys of the prompts that training holds out: drawn from those of the rows that it keeps."""
    keys = [
        [
            prompt_key(encoded.example)
            for encoded in _rows(source, part, loader, Counts(), "find held-out prompts:")
            if encoded.group is not None
        ]
        for source, part in zip(sources, parts, strict=True)
    ]
    prompts = np.array([key for of_part in keys for key in of_part], dtype=np.int64)
    prompts = prompts[mixed(parts, list(map(len, keys)), seed)]
    return set(prompts[hold_out(prompts, fraction, seed)].tolist())


def _rows(source: Source, part: Part, loader: Loader, counts: Counts, doing: str) -> Iterator[Encoded]:
    """``walk``, with progress."""
    told = 0
    before = counts.read
    with loader.phase(f"{doing} {source.name}", source.total, "rows") as advance:
        for encoded in walk(source, part.recipe, loader.tokenizer, counts):
            if counts.read - before > told:  # a chunk more
                advance(counts.read - before - told)
                told = counts.read - before
            yield encoded
        advance(counts.read - before - told)
