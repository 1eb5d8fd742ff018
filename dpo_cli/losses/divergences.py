"""f-DPO (Wang et al. 2023): the implicit reward under other divergences than the reverse KL.

The reward is beta x f'(u) + const with u = pi / pi_ref of the whole answer (theorem 1), and only differences count, so
constants are left out. ``u`` is given as its log, the log-ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_LARGEST = 80.0
"""Largest exponent: e^80 still fits float32 with room for its square's gradient. Beyond it the score stays level."""

Score = Callable[[Tensor], Tensor]


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """f(u) = u log u: plain DPO."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """f(u) = -log u, f'(u) = -1/u."""
    return -torch.exp((-log_ratio).clamp(max=_LARGEST))


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """f'(u) = log(2u / (1 + u)); log 2 left out."""
    return logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, *, alpha: float) -> Tensor:
    """f'(u) = (1 - u^-alpha) / alpha, alpha in (0, 1); towards 0 the reverse KL, towards 1 the forward KL.

    trl's coefficient is 1 - alpha; ms-swift has this one.
    """
    return -torch.expm1((-alpha * log_ratio).clamp(max=_LARGEST)) / alpha


def divergence_score(name: str, alpha: float | None) -> Score:
    """The score of the divergence of that name."""
    if name == "alpha" and alpha is not None:
        return partial(alpha_divergence, alpha=alpha)
    return {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "js": jensen_shannon}[name]
