"""What is in a data set, and what that does to training: ``dpo inspect`` without its looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dpo_cli.data.audit.facts import Facts
from dpo_cli.data.audit.findings import NAMES, findings
from dpo_cli.data.audit.result import Result
from dpo_cli.data.audit.side import Measured, find_nearly_held_out
from dpo_cli.data.audit.walk import groups_at, walk
from dpo_cli.data.holdout import hold_out
from dpo_cli.data.load import Loader, Part, mixed
from dpo_cli.data.sources import open_source
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
    rows: list[Iterable[Facts]] = [
        walk(source, part.recipe, loader, train.counts) for source, part in zip(sources, parts, strict=True)
    ]
    out: set[int] = set()
    if isinstance(held_out, float):
        kept = [list(facts) for facts in rows]
        out, rows = _held_out(parts, kept, held_out, seed), [*kept]
    elif held_out is not None and held is not None:
        source = open_source(held_out.place, key=held_out.key, cache=loader.folder)
        for facts in walk(source, held_out.recipe, loader, held.counts):
            held.add(facts)
            if facts.kept:
                out.add(facts.prompt_key)
    shown: list[Group] = []
    for source, part, of_part in zip(sources, parts, rows, strict=True):
        places: list[str] = []
        for facts in of_part:
            is_out = facts.prompt_key in out
            if is_out and not isinstance(held_out, float):
                train.see("in-both-sides", facts.source)
                continue
            side = held if is_out and held is not None else train
            if isinstance(held_out, float) and limit is not None and side.kept >= limit:
                continue
            side.add(facts)
            if side is train and facts.kept and len(shown) + len(places) < show:
                places.append(facts.source)
        shown += groups_at(source, places, part.recipe, loader)
    if held is not None:
        find_nearly_held_out(train, held)
    stops = any(part.recipe.on_bad_row == "raise" for part in parts)
    sides = train.result(), None if held is None else held.result()
    return Result(1, model, data, *sides, findings(train, held, stops=stops)), shown


def _held_out(parts: Sequence[Part], rows: Sequence[Sequence[Facts]], fraction: float, seed: int) -> set[int]:
    """Keys of the prompts that training holds out: drawn from those of the rows that it keeps."""
    keys = [[facts.prompt_key for facts in of_part if facts.kept] for of_part in rows]
    prompts = np.array([key for of_part in keys for key in of_part], dtype=np.int64)
    prompts = prompts[mixed(parts, list(map(len, keys)), seed)]
    return set(prompts[hold_out(prompts, fraction, seed)].tolist())
