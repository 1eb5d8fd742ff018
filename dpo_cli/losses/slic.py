"""Sequence Likelihood Calibration."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs


def slic(pairs: Pairs, *, delta: float) -> Tensor:
    """SLiC-HF's rank calibration (Zhao et al. 2023, eq. 1, first term): ``max(0, delta - log pi_w + log pi_l)``.

    Log-probs are summed over tokens; there is no reference. The paper's second term, the likelihood of a target, is
    ``sft_weight`` (per token here, and of the chosen answer, as in HALOs; a sum over tokens in the paper).

    Args:
        pairs: B comparisons.
        delta: the margin, in nats.

    Returns:
        ``[B]``
    """
    return (delta - pairs.chosen.policy + pairs.rejected.policy + pairs.margin).relu()
