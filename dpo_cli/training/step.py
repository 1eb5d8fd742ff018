"""One update: forward and backward over this rank's micro-batches, then the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from dpo_cli import distributed, faults, liveness
from dpo_cli.data.plan import Step
from dpo_cli.data.types import Group
from dpo_cli.distributed import data_rank
from dpo_cli.engine.engine import Engine
from dpo_cli.errors import NumericsError
from dpo_cli.losses import Sums
from dpo_cli.objective import LossState, Objective, rows_of


class Update(NamedTuple):
    """What came of one."""

    loss: float
    """The mean over the global batch's comparisons, before the update."""
    norm: float
    """The gradient's, before clipping."""
    state: LossState
    """What the loss remembers after it."""


def train_step(engine: Engine, step: Step, objective: Objective, lr: float, sums: Sums, state: LossState) -> Update:
    """Make one update. All ranks must call it.

    Every comparison weighs one over the comparisons of the global batch, so the update does not depend on how the
    batch was split over ranks and micro-batches. A loss with statistics over the global batch has them found first,
    by scoring the batch without gradient.

    Args:
        engine: around the policy.
        step: of the plan.
        objective: the loss and the rows.
        lr: learning rate of this update.
        sums: takes in the metrics of this rank's comparisons.
        state: what the loss remembers.

    Raises:
        NumericsError: if the loss is not finite on any rank, before anything is changed; or the gradient is not.
    """
    micro_batches = step.ranks[data_rank()]
    contexts, state = objective.contexts(engine, micro_batches, step.groups, state)
    rows = rows_of(step.groups, objective.count)
    before = sums.total("loss")
    for number, members in enumerate(micro_batches, 1):
        liveness.beat()
        # A rank that has run out of groups runs some group with weight zero: all ranks must meet in every pass.
        taken = members or step.groups[:1]
        batch, logps = objective.look(engine, [objective.groups[index] for index in taken])
        logps = replace(logps, policy=faults.spoiled(logps.policy, number))
        preferences = objective.preferences(batch, logps, [row for index in taken for row in rows[index]])
        result = objective.loss(logps, preferences, contexts)
        total = result.losses.sum()
        engine.backward(total * ((1.0 if members else 0.0) / step.comparisons), last=number == len(micro_batches))
        if members:
            sums.add(result.metrics)
    # The first look at any number: until here the host only queues work and never waits for the device.
    [loss] = distributed.sums([sums.total("loss") - before])
    if not math.isfinite(loss):
        raise NumericsError(_bad("the loss is not finite; this update was not made", step, objective.groups))
    norm = engine.step(lr)
    if not math.isfinite(norm):
        raise NumericsError(_bad(f"the gradient's norm is {norm}; this update was not made", step, objective.groups))
    return Update(loss / step.comparisons, norm, state)


def _bad(what: str, step: Step, groups: Sequence[Group]) -> str:
    rows = [groups[index].source for index in step.groups[:10]]
    more = f" and {len(step.groups) - len(rows)} more" if len(step.groups) > len(rows) else ""
    return f"{what}. Rows of the batch: {'; '.join(rows)}{more}. Lower optim.lr, or look at these rows"
