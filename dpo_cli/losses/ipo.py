"""Identity Preference Optimization."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dpo_cli.losses.views import Pairs


def ipo(pairs: Pairs, *, beta: float, normalise: Literal["mean", "sum"]) -> Tensor:
    """IPO (Azar et al. 2023, eq. 17): ``(h - 1 / (2 tau))^2``, a regression instead of a logistic.

    ``h`` is the winner's log-ratio minus the loser's. The paper's are of whole answers (``sum``); its authors have
    said that its results are with means over tokens (``mean``, the default, as in trl, HALOs and LLaMA-Factory; the
    original DPO code, OpenRLHF and NeMo-Aligner sum). 1 / (4 tau^2) at policy = reference.

    Args:
        pairs: B comparisons, with a reference. A margin moves the target: ``h - margin / tau - 1 / (2 tau)``.
        beta: ``tau``.
        normalise: ``mean`` or ``sum`` over each answer's tokens.

    Returns:
        ``[B]``
    """
    if normalise == "mean":
        gap = pairs.chosen.mean_ratio - pairs.rejected.mean_ratio
    else:
        gap = pairs.chosen.ratio - pairs.rejected.ratio
    return (gap - pairs.margin / beta - 1 / (2 * beta)).square()
