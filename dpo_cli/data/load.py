"""From sources to the Groups that are trained on and the Groups that are held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.build import Phase, Recipe, build, find, key64
from dpo_cli.data.holdout import hold_out, overlap
from dpo_cli.data.sources import Place, Source, open_source
from dpo_cli.data.store import Groups, Table
from dpo_cli.data.types import Group


@dataclass(frozen=True, slots=True)
class Part:
    """One source of rows, and how much of it is taken."""

    key: str
    """The configuration key it comes from, for messages."""
    place: Place
    recipe: Recipe
    rows: int | None = None
    """So many, drawn by the seed; more than there are repeat them."""
    weight: float | None = None
    """Its share, against the other parts' weights."""


@dataclass(frozen=True, slots=True)
class Data:
    """Everything a run reads."""

    train: Sequence[Group]
    held_out: Sequence[Group]
    ends: list[int]
    """Tokens that end an answer: generation must stop at them."""
    counts: dict[str, Any]
    """What was read, left out and cut, by side and source: plain values for ``run.json``."""
    commits: dict[str, str] = field(default_factory=dict)
    """Of hub data sets, by their ids."""


@dataclass(frozen=True, slots=True)
class Loader:
    """What reading any part takes."""

    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """Of caches: tables and hashes of files."""
    workers: int | None
    """Processes that tokenise; None = one per core."""
    phase: Phase
    """Progress."""
    warn: Callable[[str], None]

    def source(self, part: Part) -> Source:
        """A part's rows as they are kept."""
        return open_source(part.place, key=part.key, cache=self.folder)

    def table(self, part: Part, source: Source) -> Table:
        """A part's rows, all of them, out of its ``source``."""
        return build(
            source,
            part.recipe,
            self.tokenizer,
            workers=self.workers,
            folder=self.folder / "tokens",
            phase=self.phase,
            warn=self.warn,
        )

    def known(self, part: Part) -> bool:
        """Whether the part's rows have been read before."""
        return find(self.source(part), part.recipe, self.tokenizer, folder=self.folder / "tokens") is not None


def load_data(
    parts: Sequence[Part], held_out: Part | float | None, loader: Loader, *, limit: int | None, seed: int
) -> Data:
    """Read, mix, hold out. A prompt is never on both sides: training gives way.

    Args:
        parts: what is trained on.
        held_out: None, a fraction of the prompts, or a part of its own.
        loader: how parts are read.
        limit: rows of each side, where the side is a fraction of what was read; parts have limits of their own.
        seed: which prompts are held out, if ``held_out`` is a fraction, and which rows are drawn for a mixture.

    Raises:
        DataError: see ``build``, ``hold_out`` and ``overlap``.
    """
    sources = [loader.source(part) for part in parts]
    tables = [loader.table(part, source) for part, source in zip(parts, sources, strict=True)]
    groups = Groups(tables, mixed(parts, list(map(len, tables)), seed))
    prompts = _keys(tables, "prompt_key")[groups.chosen]
    counts: dict[str, Any] = {"train": _counted(parts, tables, groups)}
    held: Groups | None = None
    if isinstance(held_out, float):
        out = hold_out(prompts, held_out, seed)
        held, groups = groups.select(out)[:limit], groups.select(~out)[:limit]
        counts["held_out"] = {"groups": len(held)}
    elif held_out is not None:
        sources.append(loader.source(held_out))
        table = loader.table(held_out, sources[-1])
        held = Groups([table])
        both = overlap(prompts, table.keys("prompt_key"))
        groups = groups.select(~both)
        counts["train"]["prompts_held_out"] = int(both.sum())
        counts["held_out"] = _counted([held_out], [table], held)
    counts["train"]["groups"] = len(groups)
    places = [*parts, *([held_out] if isinstance(held_out, Part) else [])]
    commits = {
        part.place.path: source.commit
        for part, source in zip(places, sources, strict=True)
        if source.commit is not None
    }
    return Data(groups, [] if held is None else held, tables[0].facts["ends"], counts, commits)


def mixed(parts: Sequence[Part], sizes: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Which rows of all parts are taken, by number, in the order of the parts.

    Args:
        parts: with their shares.
        sizes: rows of each that can be used.
        seed: of what is drawn.
    """
    starts = np.cumsum([0, *sizes])
    weights = [part.weight or 0.0 for part in parts]
    # As large as it can be without repeating a row.
    whole = min((size / weight for size, weight in zip(sizes, weights, strict=True) if weight), default=0.0)
    taken = []
    for part, size, start in zip(parts, sizes, starts, strict=False):
        wanted = max(1, int(whole * part.weight)) if part.weight is not None else part.rows
        taken.append(start + _drawn(size, wanted, [seed, key64(part.key) % 2**64]))
    return np.concatenate(taken)


def _drawn(count: int, wanted: int | None, seed: Sequence[int]) -> NDArray[np.int64]:
    """So many of ``count`` rows, in order: every row as often as any other, give or take one."""
    if wanted is None:
        return np.arange(count)
    passes, rest = divmod(wanted, count)
    some = np.random.default_rng(seed).choice(count, rest, replace=False)
    return np.sort(np.concatenate([np.tile(np.arange(count), passes), some]))


def _keys(tables: Sequence[Table], column: str) -> NDArray[np.int64]:
    return np.concatenate([table.keys(column) for table in tables])


def _counted(parts: Sequence[Part], tables: Sequence[Table], taken: Groups) -> dict[str, Any]:
    """What became of the rows of a side, and of each source where there are several."""
    each = {
        part.key: table.facts["counts"] | {"taken": taken_of}
        for part, table, taken_of in zip(parts, tables, taken.count_by_table(), strict=True)
    }
    rows = _keys(tables, "content_key")
    total: dict[str, Any] = {
        name: sum(counts[name] for counts in each.values()) for name in ("read", "bad", "without_preference")
    }
    # They are kept: repeating a row is a way to weigh it.
    total["duplicates"] = len(rows) - len(np.unique(rows))
    total["first_bad"] = [message for counts in each.values() for message in counts["first_bad"]]
    tokenized = [counts["tokenized"] for counts in each.values()]
    summed = {
        name: max(one[name] for one in tokenized) if name == "longest" else sum(one[name] for one in tokenized)
        for name in tokenized[0]
    }
    side = {"rows": total, "tokenized": summed, "prompts_held_out": 0}
    return side | ({"sources": each} if len(parts) > 1 else {})


def fingerprint(groups: Iterable[Group]) -> str:
    """SHA-256, in hex, of the groups' token ids and preferences in order: the same data, however it was stored."""
    digest = hashlib.sha256()
    for group in groups:
        parts = [group.prompt_ids, *group.answers]
        # The lengths keep what follows apart: without, moving a token from prompt to answer would change nothing.
        digest.update(np.array([len(parts), *map(len, parts)], dtype="<i8").tobytes())
        for part in parts:
            digest.update(part.astype("<i4").tobytes())
        digest.update(json.dumps([group.pairs, group.labels, group.ranks, group.weight]).encode())
        for mask in group.scored:
            digest.update(mask.tobytes())
    return digest.hexdigest()
