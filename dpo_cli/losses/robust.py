"""Robust DPO."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs, smoothed


def robust(pairs: Pairs, *, beta: float, label_smoothing: float) -> Tensor:
    """Provably robust DPO (Chowdhury et al. 2024, eq. 12): an unbiased estimate of DPO's loss under clean labels.

    ``[(1 - e) L(w, l) - e L(l, w)] / (1 - 2e)`` with DPO's ``L``, for labels that are flipped with probability
    ``e``. Log-ratios are summed over tokens. ln 2 at policy = reference. It is not bounded below.

    Args:
        pairs: B comparisons, with a reference.
        beta: as DPO's.
        label_smoothing: ``e``, in [0, 0.5); 0 is DPO.

    Returns:
        ``[B]``
    """
    x = beta * pairs.gap - pairs.margin
    return ((1 - label_smoothing) * smoothed(x, 0.0) - label_smoothing * smoothed(-x, 0.0)) / (1 - 2 * label_smoothing)
