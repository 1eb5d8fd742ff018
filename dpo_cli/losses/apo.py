"""Anchored Preference Optimization."""

from __future__ import annotations

from torch import Tensor, sigmoid, where

from dpo_cli.losses.views import Judged, Pairs


def apo_zero(pairs: Pairs, *, beta: float) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, eq. 7): ``1 - sigmoid(r_w) + sigmoid(r_l)``.

    ``r = beta x`` log-ratio, summed over tokens. Winners become likelier and losers less likely: for winners that are
    better than what the model would say. 1 at policy = reference.

    Args:
        pairs: B comparisons, with a reference.
        beta: as DPO's.

    Returns:
        ``[B]``
    """
    return sigmoid(-beta * pairs.chosen.ratio) + sigmoid(beta * pairs.rejected.ratio)


def apo_down(pairs: Pairs, *, beta: float) -> Tensor:
    """APO-down (D'Oosterlinck et al. 2024, eq. 8): ``sigmoid(r_w) + 1 - sigmoid(r_w - r_l)``.

    Both become less likely, losers more so: for winners that are worse than what the model would say. 1 at policy =
    reference.

    Args:
        pairs: B comparisons, with a reference.
        beta: as DPO's.

    Returns:
        ``[B]``
    """
    return sigmoid(beta * pairs.chosen.ratio) + sigmoid(-beta * (pairs.chosen.ratio - pairs.rejected.ratio))


def apo_zero_unpaired(judged: Judged, *, beta: float) -> Tensor:
    """APO-zero on answers that are judged one by one, as trl has it: ``1 - sigmoid(r)`` if good, ``sigmoid(r)`` if
    not. A pair counts as two answers, so that the mean over both is half of ``apo_zero``.

    Args:
        judged: U answers, with a reference.
        beta: as DPO's.

    Returns:
        ``[U]``
    """
    reward = beta * judged.answers.ratio
    return sigmoid(where(judged.good, -reward, reward))
