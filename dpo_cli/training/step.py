"""One update: forward and backward over this rank's micro-batches, then the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

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
    problem: str | None = None
    """Why the update was not made: nothing but the plan's position has moved. None = it was made."""


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
        sums: takes in the metrics of this rank's comparisons, if the update is made.
        state: what the loss remembers.

    Returns:
        What came of it. Where the loss or the gradient is not finite on any rank, no rank makes the update.

    Raises:
        NumericsError: if the loss is not finite although the gradient is.
    """
    micro_batches = step.ranks[data_rank()]
    contexts, after = objective.contexts(engine, micro_batches, step.groups, state)
    rows = rows_of(step.groups, objective.count)
    found = Sums(sums.names)
    so_far = torch.zeros((), device=distributed.device())  # of the losses, left on the device
    for number, members in enumerate(micro_batches, 1):
        liveness.beat()
        # A rank that has run out of groups runs some group with weight zero: all ranks must meet in every pass.
        taken = members or step.groups[:1]
        batch, logps = objective.look(engine, [objective.groups[index] for index in taken])
        logps = replace(logps, policy=faults.spoiled(logps.policy, number))
        preferences = objective.preferences(batch, logps, [row for index in taken for row in rows[index]])
        result = objective.loss(logps, preferences, contexts)
        total = result.losses.sum()
        weighted = total * ((1.0 if members else 0.0) / step.comparisons)
        so_far = so_far + total.detach()
        last = number == len(micro_batches)
        if last:
            # A loss that is not finite makes the gradient so: every rank sees that in the norm, and none steps.
            weighted = weighted * torch.ones_like(so_far).where(so_far.isfinite(), torch.nan)
        engine.backward(weighted, last=last)
        if members:
            found.add(result.metrics)
    norm = engine.step(lr)
    # The first look at any number of the forward passes: until here the host never waits for those.
    loss = distributed.sums([found.total("loss")])[0] / step.comparisons
    if math.isfinite(norm) and math.isfinite(loss):
        sums.merge(found)
        return Update(loss, norm, after)
    what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is not finite ({loss})"
    where = _rows(step, objective.groups)
    if math.isfinite(norm):
        raise NumericsError(f"{what}, and yet the gradient's norm is {norm}: the update was made. {where}")
    return Update(loss, norm, state, f"{what}; this update was not made (learning rate {lr:.3g}). {where}")


def _rows(step: Step, groups: Sequence[Group]) -> str:
    rows = [groups[index].source for index in step.groups[:10]]
    more = f" and {len(step.groups) - len(rows)} more" if len(step.groups) > len(rows) else ""
    return f"Rows of the batch: {'; '.join(rows)}{more}"
