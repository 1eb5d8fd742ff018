"""Contrastive Preference Optimization."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs, smoothed


def cpo(pairs: Pairs, *, beta: float, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """CPO's preference term (Xu et al. 2024, eq. 4): DPO with a uniform reference, which cancels.

    ``-log sigmoid(beta (log pi_w - log pi_l))``, summed over tokens. Its likelihood term is ``sft_weight``, 1 as in
    the paper; per token of each chosen answer here (trl: one mean over all tokens of a micro-batch).

    Args:
        pairs: B comparisons.
        beta: as DPO's.
        label_smoothing: as DPO's.

    Returns:
        ``[B]``
    """
    return smoothed(beta * (pairs.chosen.policy - pairs.rejected.policy) - pairs.margin, label_smoothing)
