"""Efficient Exact Optimization."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_cli.losses.views import Pairs


def exo(pairs: Pairs, *, beta: float, label_smoothing: float) -> Tensor:
    """EXO on pairs (Ji et al. 2024, eq. 16): the *reverse* KL from the policy's preference to the labels'.

    ``p log(p / (1 - e)) + (1 - p) log((1 - p) / e)`` with ``p = sigmoid(beta h)``; DPO is the forward one. Log-ratios
    are summed over tokens. Without smoothing it is infinite.

    Args:
        pairs: B comparisons, with a reference; a label probability stands for ``1 - e``, held inside (0, 1).
        beta: as DPO's.
        label_smoothing: ``e``, over 0.

    Returns:
        ``[B]``
    """
    x = beta * pairs.gap - pairs.margin
    if pairs.label_prob is None:
        right: Tensor | float = log(1 - label_smoothing)
        wrong: Tensor | float = log(label_smoothing)
    else:
        held = pairs.label_prob.clamp(label_smoothing, 1 - label_smoothing)
        right, wrong = held.log(), (1 - held).log()
    return torch.sigmoid(x) * (logsigmoid(x) - right) + torch.sigmoid(-x) * (logsigmoid(-x) - wrong)
