"""Length-normalised DPO."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs, smoothed


def dpo_norm(pairs: Pairs, *, beta: float, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """DPO with each log-ratio divided by its answer's length (Lambert et al. 2024, Tulu 3, eq. 6).

    Means over tokens: beta is some 50 times DPO's (5 in Tulu 3). trl calls it ``sigmoid_norm``. ln 2 at policy =
    reference.

    Args:
        pairs: B comparisons, with a reference.
        beta: per nat and token.
        label_smoothing: as DPO's.

    Returns:
        ``[B]``
    """
    gap = pairs.chosen.mean_ratio - pairs.rejected.mean_ratio
    return smoothed(beta * gap - pairs.margin, label_smoothing)
