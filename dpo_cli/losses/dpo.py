"""Direct Preference Optimization."""

from __future__ import annotations

from torch import Tensor

from dpo_cli.losses.views import Pairs, smoothed


def dpo(pairs: Pairs, *, beta: float, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7), with label smoothing (conservative DPO: Mitchell 2023).

    ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``, where ``h`` is the log-ratio of the winner minus that
    of the loser, each summed over the answer's tokens. No length normalisation. At policy = reference it is ln 2
    for every ``e``. trl's ``sigmoid`` ignores label smoothing.

    Args:
        pairs: B comparisons, with a reference. A margin is taken from ``beta h`` (ODPO, Amini et al. 2024, eq. 7).
        beta: strength of the pull towards the reference, per nat.
        label_smoothing: ``e``, the share of preferences taken to be wrong, in [0, 0.5).

    Returns:
        ``[B]``, unreduced, in nats.
    """
    return smoothed(beta * pairs.gap - pairs.margin, label_smoothing)
