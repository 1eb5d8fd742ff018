"""The reference pass: fill the store with what is missing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from dpo_cli import faults
from dpo_cli.data.collate import flat_length
from dpo_cli.data.plan import pack
from dpo_cli.data.types import Group
from dpo_cli.distributed import data_rank, data_ranks, from_first, rank, sequence_rank, wait_for_all, world_size
from dpo_cli.errors import NumericsError, StorageError
from dpo_cli.model.policy import Policy
from dpo_cli.model.score import score
from dpo_cli.reference.store import Logps, ReferenceStore, distinct

_GROUPS_PACKED_AT_ONCE = 1024
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

    What is done is kept every minute, so that a pass that was cut off goes on from there, and to the same bits. Those
    depend on what else is in a micro-batch. A first-fit packing without some whole micro-batches has the others as they
    were; and micro-batches are made before they are dealt out to the ranks, however many there are.

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
        parts: dict[int, Group] = {}
        if missing:
            parts = distinct(groups)  # of which these are some, as each is the first that has what is missing
            policy = load()
            policy.eval()
            began = time.perf_counter()
            work = _micro_batches(parts, set(missing), policy, token_budget)
            mine = work[data_rank() :: data_ranks()]
            idle = -(-len(work) // data_ranks()) - len(mine) if together else 0
            # The processes that share rows compute the same numbers: the first keeps them.
            keep = partial(store.add, shard=shard) if sequence_rank() == 0 else _drop
            _compute(keep, mine + work[:1] * idle, len(mine), policy, advance)
            seconds = time.perf_counter() - began
        wait_for_all()
    store.refresh()
    if missing and world_size() > 1 and (unseen := store.missing(groups)):
        raise StorageError(
            f"{socket.gethostname()} does not see the log-probs of {len(unseen)} rows in {store.folder}, which other "
            "ranks have written: reference.cache_dir must be on a file system that all machines share"
        )
    total = sum(len(answer) for group in groups for answer in group.answers)
    computed = sum(len(answer) for index in missing for answer in parts[index].answers)
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


def _micro_batches(
    groups: Mapping[int, Group], missing: AbstractSet[int], policy: Policy, token_budget: int
) -> list[list[Group]]:
    """What is missing, packed in portions of all groups: what is done already doesn't shift the portions."""
    found: list[list[Group]] = []
    indices = [*groups]
    for start in range(0, len(indices), _GROUPS_PACKED_AT_ONCE):
        portion = [groups[i] for i in indices[start : start + _GROUPS_PACKED_AT_ONCE] if i in missing]
        lengths = [flat_length(group, share=policy.groups) for group in portion]
        packs = pack(range(len(portion)), lengths, token_budget, padded=not policy.groups)
        found += [[portion[member] for member in members] for members in packs]
    return found


def _compute(
    keep: Callable[[Sequence[Group], Sequence[Sequence[Logps]]], None],
    work: Sequence[Sequence[Group]],
    count: int,
    policy: Policy,
    advance: Callable[[int], None],
) -> None:
    """A data rank's micro-batches: the first ``count`` are kept, the others run for those that have one more."""
    done: list[Group] = []
    logps: list[list[Logps]] = []
    last_kept = time.monotonic()
    try:
        for number, batch in enumerate(work, 1):
            found = score(policy, batch, share=policy.groups)
            if number > count:
                continue
            faults.reached("reference", number)
            _check_finite(batch, found)
            logps += found
            done += batch
            advance(len(batch) * data_ranks())  # the other ranks do about as many
            if len(done) >= _GROUPS_PER_CHUNK or time.monotonic() - last_kept > _SECONDS_PER_CHUNK:
                keep(done, logps)
                done, logps, last_kept = [], [], time.monotonic()
    finally:  # what a signal cuts off is not lost
        keep(done, logps[: len(done)])
