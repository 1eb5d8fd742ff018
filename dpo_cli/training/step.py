"""One update: forward and backward over this rank's micro-batches, then the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.plan import Step
from dpo_cli.data.types import Group
from dpo_cli.distributed import device, largest, rank
from dpo_cli.engine.engine import Engine
from dpo_cli.errors import NumericsError
from dpo_cli.losses import AnswerLogps, Loss, Preferences, Sums

Reference = Callable[[FlatBatch], Tensor]
"""Gives the reference log-probs ``[M]`` of a batch."""


@dataclass(frozen=True)
class Objective:
    """What is minimised, and on what."""

    groups: Sequence[Group]
    """The training groups, indexed by the plan."""
    share: bool
    """Whether the policy takes groups with shared prompts."""
    loss: Loss
    reference: Reference
    beta: float
    """Of the reported rewards."""


def train_step(engine: Engine, step: Step, objective: Objective, lr: float, sums: Sums) -> float:
    """Make one update. All ranks must call it.

    Every comparison weighs one over the comparisons of the global batch, so the update does not depend on how the
    batch was split over ranks and micro-batches.

    Args:
        engine: around the policy.
        step: of the plan.
        objective: the loss and the rows.
        lr: learning rate of this update.
        sums: takes in the metrics of this rank's comparisons.

    Returns:
        The gradient's norm before clipping.

    Raises:
        NumericsError: if the loss is not finite on any rank, before anything is changed; or the gradient is not.
    """
    micro_batches = step.ranks[rank()]
    finite = True
    for number, members in enumerate(micro_batches, 1):
        # A rank that has run out of groups runs some group with weight zero: all ranks must meet in every pass.
        groups = [objective.groups[index] for index in members or step.groups[:1]]
        batch = collate(groups, share=objective.share)
        logps = AnswerLogps.of(engine(batch), objective.reference(batch), batch.answer_tokens, batch.answer)
        preferences = Preferences.of(batch.winners, batch.losers, device())
        losses = objective.loss(logps, preferences)
        weight = (1.0 if members else 0.0) / step.comparisons
        engine.backward(losses.sum() * weight, last=number == len(micro_batches))
        if members:
            finite &= math.isfinite(sums.add(losses.detach(), logps, preferences, objective.beta))
    if largest([float(not finite)])[0]:
        raise NumericsError(_bad("the loss is not finite; this update was not made", step, objective.groups))
    norm = engine.step(lr)
    if not math.isfinite(norm):
        raise NumericsError(_bad(f"the gradient's norm is {norm}; the weights are spoilt", step, objective.groups))
    return norm


def _bad(what: str, step: Step, groups: Sequence[Group]) -> str:
    rows = [groups[index].source for index in step.groups[:10]]
    more = f" and {len(step.groups) - len(rows)} more" if len(step.groups) > len(rows) else ""
    return f"{what}. Rows of the batch: {'; '.join(rows)}{more}. Lower optim.lr, or look at these rows"
