"""DiscoPOP, the loss that a language model found."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_cli.losses.views import Pairs


def discopop(pairs: Pairs, *, beta: float, tau: float) -> Tensor:
    """DiscoPOP, the log-ratio modulated loss (Lu et al. 2024, eq. 5).

    ``(1 - m) (-log sigmoid(x)) + m exp(-x)`` with ``x = beta h`` and ``m = sigmoid(x / tau)``; ``h`` summed over
    tokens. (1 + ln 2) / 2 at policy = reference.

    Args:
        pairs: B comparisons, with a reference.
        beta: as DPO's.
        tau: temperature of the mix, in (0, 1).

    Returns:
        ``[B]``
    """
    x = beta * pairs.gap - pairs.margin
    # m exp(-x) in one exponential: for a very negative x the factors are 0 and infinite.
    exponential = torch.exp(logsigmoid(x / tau) - x)
    return -logsigmoid(x) * torch.sigmoid(-x / tau) + exponential
