"""Binary Classifier Optimization."""

from __future__ import annotations

from torch import Tensor, where
from torch.nn.functional import logsigmoid

from dpo_cli.losses.views import Judged


def bco(judged: Judged, *, beta: float) -> Tensor:
    """BCO (Jung et al. 2024, eq. 12) on answers judged one by one: a classifier whose logit is the shifted reward.

    ``-log sigmoid(r - s)`` of good answers, ``-log sigmoid(s - r)`` of bad ones, with ``r = beta x`` log-ratio summed
    over tokens. The shift ``s``, in ``judged.context``, is the running mean over all batches so far, this one
    included, of the middle between good answers' mean reward and bad ones'. The paper's weighting of prompts by
    their distribution (UDM) is not done.

    Args:
        judged: U answers, with a reference.
        beta: as DPO's.

    Returns:
        ``[U]``
    """
    value = beta * judged.answers.ratio - judged.context
    return -logsigmoid(where(judged.good, value, -value))
