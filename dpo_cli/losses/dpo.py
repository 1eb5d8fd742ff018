"""Direct Preference Optimization."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_cli.losses.types import AnswerLogps, Preferences


def dpo(logps: AnswerLogps, preferences: Preferences, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7), with label smoothing (conservative DPO: Mitchell 2023).

    ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``, where ``h`` is the log-ratio of the winner minus that
    of the loser, each summed over the answer's tokens. No length normalisation. At policy = reference it is ln 2
    for every ``e``.

    Args:
        logps: of the batch's answers; needs a reference.
        preferences: B comparisons.
        beta: strength of the pull towards the reference, per nat.
        label_smoothing: ``e``, the share of preferences taken to be wrong, in [0, 0.5).

    Returns:
        ``[B]``, unreduced, in nats.
    """
    margin = beta * (logps.log_ratios[preferences.winners] - logps.log_ratios[preferences.losers])
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
