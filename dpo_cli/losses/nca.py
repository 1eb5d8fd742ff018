"""Noise Contrastive Alignment."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_cli.losses.views import Pairs


def nca(pairs: Pairs, *, beta: float) -> Tensor:
    """NCA on pairs (Chen et al. 2024, "Noise Contrastive Alignment", eq. 12 with K = 2).

    ``-log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l)`` with ``r = beta x`` log-ratio, summed over
    tokens. Rewards themselves, not only their difference, so that the winner's likelihood is held up. 2 ln 2 at
    policy = reference.

    Args:
        pairs: B comparisons, with a reference.
        beta: the paper's alpha.

    Returns:
        ``[B]``
    """
    chosen, rejected = beta * pairs.chosen.ratio, beta * pairs.rejected.ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
