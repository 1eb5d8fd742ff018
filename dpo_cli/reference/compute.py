"""The reference pass: fill the store with what is missing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from dpo_cli import faults
from dpo_cli.data.collate import flat_length
from dpo_cli.data.plan import pack
from dpo_cli.data.types import Group
from dpo_cli.distributed import (
    data_rank,
    data_ranks,
    from_first,
    largest,
    rank,
    sequence_rank,
    wait_for_all,
    world_size,
)
from dpo_cli.errors import NumericsError, StorageError
from dpo_cli.model.policy import Policy
from dpo_cli.model.score import score
from dpo_cli.reference.store import Logps, ReferenceStore

_GROUPS_PER_CHUNK = 1024
_SECONDS_PER_CHUNK = 60.0


@dataclass(frozen=True)
class ReferenceCounts:
    """Where a run's reference log-probs came from, in answer tokens."""

    tokens_computed: int
    tokens_read: int
    seconds: float = field(default=0.0, compare=False)
    """Spent on computing them, loading a model left out."""

    def __str__(self) -> str:
        return f"{self.tokens_computed:,} tokens computed, {self.tokens_read:,} read"


def fill(
    store: ReferenceStore,
    groups: Sequence[Group],
    load: Callable[[], Policy],
    *,
    token_budget: int,
    advance: Callable[[int], None] = lambda groups: None,
    shard: str | None = None,
    together: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> ReferenceCounts:
    """Compute what the store lacks for ``groups``, shared out over the data ranks. All ranks must call it.

    What is done is kept every minute, so that a pass that was cut off goes on from there.

    Args:
        store: to be filled.
        groups: all groups of the run, the same on every rank.
        load: gives the reference model; not called when nothing is missing.
        token_budget: per micro-batch.
        advance: told how many groups this rank has done since the last time.
        shard: the name of a part that ``groups`` are; other parts may be computed meanwhile. None = they are all.
        together: whether the ranks must run the model equally often, as where its weights are shared out over them.
        warn: told what a killed process has left, which is removed.

    Raises:
        NumericsError: if log-probs are not finite.
        StorageError: if this rank does not see what the others have written.
    """
    seconds = 0.0
    with store.lock(shard) if rank() == 0 else nullcontext():
        store.refresh()
        if rank() == 0 and (unfinished := store.clean_up(shard)):
            warn(f"removed {unfinished} unfinished chunk{'s' * (unfinished > 1)} of a killed process in {store.folder}")
        missing: list[int] = from_first(store.missing(groups))
        if missing:
            policy = load()
            policy.eval()
            began = time.perf_counter()
            # The processes that share rows compute the same numbers: the first keeps them.
            keep = partial(store.add, shard=shard) if sequence_rank() == 0 else _drop
            for start in range(0, len(missing), _GROUPS_PER_CHUNK * data_ranks()):
                mine = missing[start : start + _GROUPS_PER_CHUNK * data_ranks()][data_rank() :: data_ranks()]
                filler = groups[missing[0]] if together else None
                _compute(keep, [groups[index] for index in mine], policy, token_budget, advance, filler)
            seconds = time.perf_counter() - began
        wait_for_all()
    store.refresh()
    if missing and world_size() > 1 and (unseen := store.missing(groups)):
        raise StorageError(
            f"{socket.gethostname()} does not see the log-probs of {len(unseen)} rows in {store.folder}, which other "
            "ranks have written: reference.cache_dir must be on a file system that all machines share"
        )
    total = sum(len(answer) for group in groups for answer in group.answers)
    computed = sum(len(answer) for index in missing for answer in groups[index].answers)
    return ReferenceCounts(tokens_computed=computed, tokens_read=max(0, total - computed), seconds=seconds)


def _drop(groups: Sequence[Group], logps: Sequence[Sequence[Logps]]) -> None:
    """Keep nothing."""


def _check_finite(groups: Sequence[Group], logps: Sequence[Sequence[Logps]]) -> None:
    for group, answers in zip(groups, logps, strict=True):
        if not all(np.isfinite(tokens).all() for tokens in answers):
            raise NumericsError(
                f"{group.source}: the reference's log-probs are not finite: look at its weights, or try "
                "train.precision=fp32"
            )


def _compute(
    keep: Callable[[Sequence[Group], Sequence[Sequence[Logps]]], None],
    groups: Sequence[Group],
    policy: Policy,
    token_budget: int,
    advance: Callable[[int], None],
    filler: Group | None,
) -> None:
    """One portion of a data rank's groups; with a ``filler``, as many forward passes as who has most to do."""
    done: list[Group] = []
    logps: list[list[Logps]] = []
    last_kept = time.monotonic()
    lengths = [flat_length(group, share=policy.groups) for group in groups]
    packs = pack(range(len(groups)), lengths, token_budget, padded=not policy.groups)
    idle = 0 if filler is None else int(largest([len(packs)])[0]) - len(packs)
    try:
        for number, members in enumerate(packs, 1):
            batch = [groups[index] for index in members]
            found = score(policy, batch, share=policy.groups)
            faults.reached("reference", number)
            _check_finite(batch, found)
            logps += found
            done += batch
            advance(len(batch) * data_ranks())  # the other ranks do about as many
            if time.monotonic() - last_kept > _SECONDS_PER_CHUNK:
                keep(done, logps)
                done, logps, last_kept = [], [], time.monotonic()
        for _ in range(idle):
            assert filler is not None
            score(policy, [filler], share=policy.groups)
    finally:  # what a signal cuts off is not lost
        keep(done, logps[: len(done)])
