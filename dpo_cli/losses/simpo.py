"""Losses on the policy's own likelihood per token: SimPO and AlphaPO."""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_cli.losses.views import Pairs, smoothed

_LARGEST = 80.0
"""Largest exponent, as in ``divergences``."""


def simpo(pairs: Pairs, *, beta: float, gamma_ratio: float, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """SimPO (Meng et al. 2024, eq. 6): ``-log sigmoid(beta (m_w - m_l) - gamma)``, no reference.

    ``m`` is the mean log-prob per token. ``gamma = gamma_ratio x beta``, as the authors tune it. There is no
    likelihood term (trl, axolotl and ms-swift, which have SimPO as a kind of CPO, add one unless told not to).

    Args:
        pairs: B comparisons.
        beta: 2 to 10.
        gamma_ratio: gamma / beta, 0 to 1.6.
        label_smoothing: as DPO's.

    Returns:
        ``[B]``
    """
    gap = pairs.chosen.mean_policy - pairs.rejected.mean_policy
    return smoothed(beta * (gap - gamma_ratio) - pairs.margin, label_smoothing)


def alphapo(
    pairs: Pairs, *, beta: float, alpha: float, gamma_ratio: float, label_smoothing: float | Tensor = 0.0
) -> Tensor:
    """AlphaPO (Gupta et al. 2025, eq. 5): SimPO with the reward ``beta (1 - p^-alpha) / alpha``.

    ``p = exp(mean log-prob per token)``; towards alpha = 0 it is SimPO.

    Args:
        pairs: B comparisons.
        beta: as SimPO's.
        alpha: shape of the reward; 0 is SimPO.
        gamma_ratio: gamma / beta.
        label_smoothing: as DPO's.

    Returns:
        ``[B]``
    """
    gap = alpha_reward(pairs.chosen.mean_policy, alpha) - alpha_reward(pairs.rejected.mean_policy, alpha)
    return smoothed(beta * (gap - gamma_ratio) - pairs.margin, label_smoothing)


def alpha_reward(mean_logp: Tensor, alpha: float) -> Tensor:
    """AlphaPO's reward over beta."""
    if alpha == 0.0:
        return mean_logp
    return -torch.expm1((-alpha * mean_logp).clamp(max=_LARGEST)) / alpha
