"""Which group is in which update, on which rank, in which micro-batch: a pure function of a few numbers.

Who is in a global batch depends on seed and epoch alone, so it is the same at any world size and any token budget.
Inside the batch, groups are spread over the ranks by cost and packed into micro-batches by tokens; every rank gets
the same number of micro-batches, because ranks must meet in every forward and backward pass. Going on after a
stop is an index into the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MicroBatch = tuple[int, ...]
"""Indices of groups; empty = a filler: the rank takes part with weight zero."""


@dataclass(frozen=True)
class Step:
    """One update."""

    epoch: float
    """Passes over the data when this update is done; 1.0 at the end of the first."""
    groups: tuple[int, ...]
    comparisons: int
    """In the global batch: every comparison weighs one over this."""
    ranks: tuple[tuple[MicroBatch, ...], ...]
    """``[world size][micro-batches]``"""


class Plan:
    """Every update of a run."""

    def __init__(
        self,
        lengths: Sequence[int],
        costs: Sequence[float],
        comparisons: Sequence[int],
        *,
        seed: int,
        batch_size: int,
        epochs: int,
        max_steps: int | None,
        world_size: int,
        token_budget: int,
        padded: bool = False,
    ) -> None:
        """
        Args:
            lengths: tokens each group takes in a micro-batch.
            costs: FLOPs of each group, in any unit.
            comparisons: of each group.
            seed: of the order.
            batch_size: comparisons per update. Groups are never split: whole ones are added until it is reached.
            epochs: passes over the data; the last, smaller batch of each is kept.
            max_steps: end after this many updates; None = run all epochs.
            world_size: ranks that have rows of their own.
            token_budget: tokens per micro-batch and rank; a longer group is a micro-batch of its own.
            padded: whether the groups of a micro-batch are padded to the longest: see ``pack``.
        """
        self._lengths = lengths
        self._costs = costs
        self._comparisons = comparisons
        self._world_size = world_size
        self._token_budget = token_budget
        self._padded = padded
        self._batches: list[tuple[float, tuple[int, ...]]] = []
        for epoch in range(epochs):
            if max_steps is not None and len(self._batches) >= max_steps:
                break
            batches = _batches(comparisons, seed, epoch, batch_size)
            self._batches += [(epoch + (i + 1) / len(batches), batch) for i, batch in enumerate(batches)]
        self._batches = self._batches[:max_steps]

    def __len__(self) -> int:
        """Updates in all."""
        return len(self._batches)

    def __getitem__(self, index: int) -> Step:
        epoch, groups = self._batches[index]
        return Step(
            epoch=epoch,
            groups=groups,
            comparisons=sum(self._comparisons[group] for group in groups),
            ranks=share_out(
                groups, self._lengths, self._costs, self._world_size, self._token_budget, padded=self._padded
            ),
        )


def _batches(comparisons: Sequence[int], seed: int, epoch: int, batch_size: int) -> list[tuple[int, ...]]:
    order = np.random.default_rng([seed, epoch]).permutation(len(comparisons))
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    filled = 0
    for group in order.tolist():
        batch.append(group)
        filled += comparisons[group]
        if filled >= batch_size:
            batches.append(tuple(batch))
            batch, filled = [], 0
    return [*batches, tuple(batch)] if batch else batches


def share_out(
    groups: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    world_size: int,
    token_budget: int,
    *,
    padded: bool = False,
) -> tuple[tuple[MicroBatch, ...], ...]:
    """Groups to ranks and micro-batches, the same number on every rank: ``[world size][micro-batches]``."""
    packed = [pack(rank, lengths, token_budget, padded=padded) for rank in spread(groups, costs, world_size)]
    count = max(len(micro_batches) for micro_batches in packed)
    return tuple(tuple(micro + [()] * (count - len(micro))) for micro in packed)


def spread(groups: Sequence[int], costs: Sequence[float], world_size: int) -> list[list[int]]:
    """Groups to ranks: the costliest first, each to the rank with the least to do."""
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for group in sorted(groups, key=lambda g: (-costs[g], g)):
        rank = loads.index(min(loads))
        ranks[rank].append(group)
        loads[rank] += costs[group]
    return ranks


def pack(groups: Sequence[int], lengths: Sequence[int], token_budget: int, *, padded: bool = False) -> list[MicroBatch]:
    """Groups to micro-batches of at most ``token_budget`` tokens: the longest first, each where it still fits.

    The fullest micro-batches come first, so that a budget that is too large for the memory shows at once. If
    ``padded``, every group takes as much as the longest of its micro-batch, which is the first.
    """
    bins: list[list[int]] = []
    sizes: list[int] = []
    for group in sorted(groups, key=lambda g: (-lengths[g], g)):
        length = lengths[group]
        after = [
            (len(members) + 1) * lengths[members[0]] if padded else size + length
            for members, size in zip(bins, sizes, strict=True)
        ]
        place = next((i for i, size in enumerate(after) if size <= token_budget), None)
        if place is None:
            bins.append([group])
            sizes.append(length)
        else:
            bins[place].append(group)
            sizes[place] = after[place]
    return [tuple(bins[i]) for i in sorted(range(len(bins)), key=lambda i: (-sizes[i], i))]
