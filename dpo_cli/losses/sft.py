"""Supervised fine-tuning on the chosen answers."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs


def sft(pairs: Pairs) -> Tensor:
    """Negative log-likelihood of the chosen answers, no reference: ``-(log pi_w) / |y_w|``.

    The mean over each answer's tokens, so that every answer counts alike (trl: one mean over all tokens of a
    micro-batch, so that long answers count more). The loss to compare preferences with.

    Args:
        pairs: B comparisons; the rejected answers are only measured.

    Returns:
        ``[B]``
    """
    return -pairs.chosen.mean_policy
