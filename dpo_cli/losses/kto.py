"""Kahneman-Tversky Optimization."""

from __future__ import annotations

from torch import Tensor, sigmoid, where

from dpo_cli.losses.views import Judged


def kto(judged: Judged, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """KTO (Ethayarajh et al. 2024, eq. 8): ``w_D (1 - sigmoid(r - z))`` of good answers, ``w_U (1 - sigmoid(z - r))``
    of bad ones.

    ``r = beta x`` log-ratio, summed over tokens. ``z = beta x KL``; the KL of policy and reference, in
    ``judged.context``, is estimated by the mean log-ratio of answers to *other* prompts over the global batch, at
    least 0 and without gradient (trl: over a micro-batch). 1/2 x the weight at policy = reference.

    Args:
        judged: U answers, with a reference.
        beta: as DPO's.
        desirable_weight: of good answers.
        undesirable_weight: of bad ones.

    Returns:
        ``[U]``
    """
    value = beta * (judged.answers.ratio - judged.context)
    return where(judged.good, desirable_weight * sigmoid(-value), undesirable_weight * sigmoid(value))
