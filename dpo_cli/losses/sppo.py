"""Self-Play Preference Optimization."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs


def sppo(pairs: Pairs, *, beta: float) -> Tensor:
    """SPPO with hard labels (Wu et al. 2024, eq. 4.7 with P = 1 and 0).

    ``(h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2`` with ``h`` the log-ratios, summed over tokens, and the paper's
    eta = 1 / beta. Each answer has a target of its own. 1 / (2 beta^2) at policy = reference.

    Args:
        pairs: B comparisons, with a reference.
        beta: 1 / eta; the paper's is 0.001.

    Returns:
        ``[B]``
    """
    target = 1 / (2 * beta)
    return (pairs.chosen.ratio - target).square() + (pairs.rejected.ratio + target).square()
