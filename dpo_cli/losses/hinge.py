"""The hinge loss of RSO, also called SLiC-norm."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs


def hinge(pairs: Pairs, *, beta: float) -> Tensor:
    """RSO's hinge on normalised likelihoods (Liu et al. 2023, "Statistical Rejection Sampling", eq. 10).

    ``max(0, 1 - beta h)`` with ``h`` the winner's log-ratio minus the loser's, summed over tokens. 1 at policy =
    reference; no gradient once ``beta h`` is over 1.

    Args:
        pairs: B comparisons, with a reference.
        beta: the paper's gamma; 1 / beta is the margin in nats.

    Returns:
        ``[B]``
    """
    return (1 - (beta * pairs.gap - pairs.margin)).relu()
