"""Alignment via Optimal Transport: distributions of rewards are compared, not single pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.losses.views import Pairs, smoothed


@dataclass(frozen=True)
class Sorted:
    """Two quantities of the global batch's comparisons, and where each comparison stands in their order."""

    upper: Tensor
    """``[B_all]``, ascending: what should be the larger."""
    lower: Tensor
    """``[B_all]``, ascending."""
    upper_place: Tensor
    """``[B_all]``: each comparison's place in ``upper``."""
    lower_place: Tensor

    @classmethod
    def of(cls, upper: Tensor, lower: Tensor) -> Sorted:
        """Of values in the batch's own order."""
        return cls(upper.sort().values, lower.sort().values, _places(upper), _places(lower))


def _places(values: Tensor) -> Tensor:
    return torch.argsort(torch.argsort(values, stable=True))


def aot(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Paired AOT (Melnyk et al. 2024, algorithm 1): the policy's margins should dominate the reference's.

    The batch's policy margins ``log pi_w - log pi_l`` and reference margins are sorted apart, and DPO's smoothed
    loss is taken of beta x the difference at each rank. Log-probs are summed over tokens. The sort is over the
    global batch (trl's is over a micro-batch of one process, so that with one pair each it is DPO). ln 2 at policy =
    reference.

    Args:
        pairs: B comparisons, with a reference; ``context`` is ``Sorted`` with policy margins as ``upper``.
        beta: as DPO's.
        label_smoothing: as DPO's.

    Returns:
        ``[B]``
    """
    order: Sorted = pairs.context
    # The difference is to another row's reference, which is a constant: the gradient is whole in this one term.
    opposite = order.lower[order.upper_place[pairs.rows]].to(pairs.chosen.policy.dtype)
    margin = pairs.chosen.policy - pairs.rejected.policy
    return smoothed(beta * (margin - opposite), label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Unpaired AOT (Melnyk et al. 2024, algorithm 2): chosen answers' rewards should dominate rejected ones'.

    Log-ratios of chosen and of rejected answers are sorted apart, and DPO's smoothed loss is taken of beta x the
    difference at each rank: which answer is compared with which is decided by the global batch. ln 2 at policy =
    reference.

    Args:
        pairs: B comparisons, with a reference; ``context`` is ``Sorted`` with chosen log-ratios as ``upper``.
        beta: as DPO's.
        label_smoothing: as DPO's.

    Returns:
        ``[B]``: the comparison of the row's chosen answer.
    """
    order: Sorted = pairs.context
    chosen, rejected = pairs.chosen.ratio, pairs.rejected.ratio
    below = order.lower[order.upper_place[pairs.rows]].to(chosen.dtype)
    above = order.upper[order.lower_place[pairs.rows]].to(chosen.dtype)
    losses = smoothed(beta * (chosen - below), label_smoothing)
    # The two answers of a comparison may lie in different micro-batches, on different ranks. Each has its gradient
    # from a term in which the other is a constant; the rejected answer's term counts for nothing in the value.
    others = smoothed(beta * (above - rejected), label_smoothing)
    return losses + (others - others.detach())
