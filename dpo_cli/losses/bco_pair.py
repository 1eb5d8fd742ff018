"""Binary Classifier Optimization on pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_cli.losses.views import Pairs


def bco_pair(pairs: Pairs, *, beta: float) -> Tensor:
    """BCO (Jung et al. 2024, eq. 12) with both answers of a pair: ``-log sigmoid(r_w - s) - log sigmoid(-(r_l - s))``.

    ``r = beta x`` log-ratio, summed over tokens; ``s`` is the reward shift, in ``pairs.context``: the running mean of
    the rewards of all batches so far, this one included, every batch counting alike. The means are over the global
    batch. trl's present ``bco_pair`` has no shift; its earlier one took the mean over a micro-batch.

    Args:
        pairs: B comparisons, with a reference.
        beta: as DPO's.

    Returns:
        ``[B]``
    """
    shift = pairs.context
    return -logsigmoid(beta * pairs.chosen.ratio - shift) - logsigmoid(shift - beta * pairs.rejected.ratio)
