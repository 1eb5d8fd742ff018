"""``dpo precompute-ref``: the reference pass of ``dpo train``, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from dpo_cli import distributed
from dpo_cli.commands.parts import Part, Reference, Scorer, Setup, resolve_precision, resolve_token_budget
from dpo_cli.commands.revisions import check_revisions
from dpo_cli.commands.rows import Rows, describe_rows, load_rows
from dpo_cli.config import PrecomputeConfig
from dpo_cli.data.store import Groups
from dpo_cli.engine.settings import resolve_stage
from dpo_cli.errors import DpoError
from dpo_cli.losses import make_loss
from dpo_cli.model.flops import FlopsModel
from dpo_cli.reference.shards import share_out
from dpo_cli.reference.store import ReferenceStore
from dpo_cli.stopping import stop_on_signals
from dpo_cli.tracking.console import Console

_MOST_SHARDS = 100_000


def run(config: PrecomputeConfig) -> None:
    """Fill the store with what these rows lack. All ranks of a run call it alike.

    Raises:
        DpoError: for what the user can mend.
    """
    started = time.monotonic()
    _shard(config)
    if config.reference.mode != "cached":
        raise DpoError(f"reference.mode={config.reference.mode}: nothing is kept in this mode; expected cached")
    distributed.check_sequence_parallel(config.engine.sequence_parallel)
    console = Console(silent=os.environ.get("RANK", "0") != "0")
    with stop_on_signals():
        _fill(config, console, started)


def _fill(config: PrecomputeConfig, console: Console, started: float) -> None:
    loss = make_loss(config.loss.settings())
    if not loss.needs_reference:
        raise DpoError(f"loss={config.loss.name} needs no reference: there is nothing to compute")
    check_revisions(config, loss.kind)
    rows = load_rows(config.model, config.data, loss, config.seed, console)
    distributed.start(config.engine.sequence_parallel)
    try:
        console.say(describe_rows(rows, loss.kind))
        precision = str(distributed.from_first(resolve_precision(config.train.precision, config.reference.cache_dir)))
        stage = resolve_stage(config.engine.zero_stage, distributed.world_size())
        setup = Setup(
            config.model,
            config.reference,
            rows,
            precision,
            resolve_token_budget(config.train.tokens_per_micro_batch),
            console,
            config.seed,
            shard=config.engine.deepspeed if stage == 3 else None,
        )
        scorer = setup.load_policy()
        console.say(f"attention: {scorer.attention}")
        shares = _shares(config, rows, scorer)
        part = None
        if shares:
            number, _ = _shard(config)
            part = Part(str(config.shard), Groups([rows.all], np.array(shares[number - 1], dtype=np.int64)))
        reference = setup.make_reference(groups=scorer.policy.groups, scorer=scorer, needed=True, part=part)
    finally:
        distributed.stop()
    counts = reference.counts
    whose = "" if part is None else f" of shard {part.name} ({len(part.rows):,} of {sum(map(len, shares)):,} rows)"
    console.result(
        f"reference log-probs{whose} are complete in {reference.store}: {counts.tokens_computed:,} tokens computed, "
        f"{counts.tokens_read:,} were there; {time.monotonic() - started:.0f} s"
    )
    if shares:
        console.result(_others(reference, rows, shares))


def _shard(config: PrecomputeConfig) -> tuple[int, int]:
    """Number, from 1, and count of the shards that was asked for; 1 of 1 without.

    Raises:
        DpoError: if there is no such shard.
    """
    number, _, count = (config.shard or "1/1").partition("/")
    if int(count) > _MOST_SHARDS:
        raise DpoError(f"shard={config.shard}: expected {_MOST_SHARDS:,} shards at most")
    if int(number) > int(count):
        raise DpoError(f"shard={config.shard}: expected 1/{count} to {count}/{count}")
    return int(number), int(count)


def _shares(config: PrecomputeConfig, rows: Rows, scorer: Scorer) -> list[list[int]]:
    """The rows of each shard, the same for every worker; none, where all is to be done."""
    if config.shard is None:
        return []
    _, count = _shard(config)
    cost = FlopsModel.of(scorer.loaded.model).forward
    return share_out(rows.all, cost, count)


def _others(reference: Reference, rows: Rows, shares: Sequence[Sequence[int]]) -> str:
    """Which of the other shards are not there yet, and how to get them."""
    assert reference.store is not None
    missing = set(ReferenceStore(reference.store.parent, reference.identity).missing(rows.all))
    count = len(shares)
    lacking = [f"{number}/{count}" for number, share in enumerate(shares, 1) if missing.intersection(share)]
    if not lacking:
        return f"all {count} shards are there: `dpo train` computes none of it again"
    return (
        f"not there yet: {', '.join(lacking)} of {count} shards; they may be at work, or are this same command with "
        f"shard={lacking[0]}"
    )
