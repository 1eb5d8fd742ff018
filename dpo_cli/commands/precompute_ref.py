"""``dpo precompute-ref``: the reference pass of ``dpo train``, and nothing else."""

from __future__ import annotations

import os
import time

from dpo_cli import distributed
from dpo_cli.commands.parts import Setup, resolve_precision, resolve_token_budget
from dpo_cli.commands.rows import describe_rows, load_rows
from dpo_cli.config import TrainConfig
from dpo_cli.errors import DpoError
from dpo_cli.losses import make_loss
from dpo_cli.tracking.console import Console
from dpo_cli.training.guards import stop_on_signals


def run(config: TrainConfig) -> None:
    """Fill the store with what these rows lack. All ranks of a run call it alike.

    Raises:
        DpoError: for what the user can mend.
    """
    started = time.monotonic()
    if config.reference.mode != "cached":
        raise DpoError(f"reference.mode={config.reference.mode}: nothing is kept in this mode; expected cached")
    console = Console(silent=os.environ.get("RANK", "0") != "0")
    with stop_on_signals():
        _fill(config, console, started)


def _fill(config: TrainConfig, console: Console, started: float) -> None:
    loss = make_loss(config.loss.settings())
    if not loss.needs_reference:
        raise DpoError(f"loss={config.loss.name} needs no reference: there is nothing to compute")
    rows = load_rows(config.model, config.data, loss, config.seed, console)
    distributed.start()
    try:
        console.say(describe_rows(rows, loss.kind))
        precision = str(distributed.from_first(resolve_precision(config.train.precision, config.reference.cache_dir)))

        setup = Setup(
            config.model,
            config.reference,
            rows,
            precision,
            resolve_token_budget(config.train.tokens_per_micro_batch),
            console,
            config.seed,
        )
        scorer = setup.load_policy()
        console.say(f"attention: {scorer.attention}")
        reference = setup.make_reference(groups=scorer.policy.groups, scorer=scorer, needed=True)
    finally:
        distributed.stop()
    counts = reference.counts
    console.result(
        f"reference log-probs are complete in {reference.store}: {counts.tokens_computed:,} tokens computed, "
        f"{counts.tokens_read:,} were there; {time.monotonic() - started:.0f} s"
    )
