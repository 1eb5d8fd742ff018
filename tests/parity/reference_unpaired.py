"""Losses of one answer that is desirable or not, and the running numbers they need; as in ``reference_impl``.

``r`` is the answer's log-ratio, a **sum** over its tokens. A slope is dL / d log pi(y|x), the gradient at each token.
"""

from __future__ import annotations

from collections.abc import Sequence

from parity.reference_impl import Logps, log_ratio, log_sigmoid, sigmoid, sigmoid_slope


def kto(
    policy: Logps,
    reference: Logps,
    desirable: bool,
    *,
    beta: float,
    reference_point: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> float:
    """Ethayarajh et al. 2024 (KTO), eq. 8: lambda_y - v, with v = lambda_D sigmoid(beta (r - z0)) if desirable, else

    lambda_U sigmoid(beta (z0 - r)); so weight x (1 - value). The weights are the lambdas.
    """
    above = beta * (log_ratio(policy, reference) - reference_point)
    return desirable_weight * sigmoid(-above) if desirable else undesirable_weight * sigmoid(above)


def kto_slope(
    policy: Logps,
    reference: Logps,
    desirable: bool,
    *,
    beta: float,
    reference_point: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> float:
    """The reference point takes no gradient."""
    slope = beta * sigmoid_slope(beta * (log_ratio(policy, reference) - reference_point))
    return -desirable_weight * slope if desirable else undesirable_weight * slope


def kto_reference_point(policies: Sequence[Logps], references: Sequence[Logps]) -> float:
    """z0 of a batch: max(0, mean of r over mismatched answers, each under another row's prompt).

    An estimate of KL(pi || pi_ref), so in nats and not times beta; summed over tokens.
    """
    ratios = [log_ratio(policy, reference) for policy, reference in zip(policies, references, strict=True)]
    return max(0.0, sum(ratios) / len(ratios))


def bco(policy: Logps, reference: Logps, desirable: bool, *, beta: float, delta: float) -> float:
    """Jung et al. 2024 (BCO): -log sigmoid(R - delta) if desirable, else -log sigmoid(-(R - delta)); R = beta r.

    Without the paper's weights for prompts that differ between desirable and undesirable rows (TRL's UDM).
    """
    above = beta * log_ratio(policy, reference) - delta
    return -log_sigmoid(above) if desirable else -log_sigmoid(-above)


def bco_slope(policy: Logps, reference: Logps, desirable: bool, *, beta: float, delta: float) -> float:
    """The shift takes no gradient."""
    above = beta * log_ratio(policy, reference) - delta
    return -beta * sigmoid(-above) if desirable else beta * sigmoid(above)


def apo_zero_unpaired(policy: Logps, reference: Logps, desirable: bool, *, beta: float) -> float:
    """D'Oosterlinck et al. 2024 (APO-zero), each answer on its own: 1 - sigmoid(R) if desirable, else sigmoid(R)."""
    above = beta * log_ratio(policy, reference)
    return sigmoid(-above) if desirable else sigmoid(above)


def apo_zero_unpaired_slope(policy: Logps, reference: Logps, desirable: bool, *, beta: float) -> float:
    slope = beta * sigmoid_slope(beta * log_ratio(policy, reference))
    return -slope if desirable else slope


# BCO's reward shift. The paper's delta is (E over desirable of R + E over undesirable of R) / 2, estimated as training
# goes. Here: the mean of the batches' means so far, each batch counting alike.


def bco_pair_batch_mean(winner_rewards: Sequence[float], loser_rewards: Sequence[float]) -> float:
    """The mean over a batch's 2B rewards R: as many winners as losers, so also the mean of the two means."""
    rewards = [*winner_rewards, *loser_rewards]
    return sum(rewards) / len(rewards)


def bco_batch_mean(rewards: Sequence[float], desirable: Sequence[bool]) -> float | None:
    """(mean over desirable + mean over undesirable) / 2, the paper's delta of one batch; None if it lacks either.

    TRL pools all rewards in one running mean instead, which leans to whichever kind is more frequent.
    """
    kinds = [[r for r, label in zip(rewards, desirable, strict=True) if label == kind] for kind in (True, False)]
    if not all(kinds):
        return None
    return sum(sum(kind) / len(kind) for kind in kinds) / 2


def running_mean(state: tuple[float, int], batch_mean: float | None) -> tuple[float, int]:
    """(mean of the batches' means so far, how many there were), one batch later. A batch without a mean is left out."""
    if batch_mean is None:
        return state
    mean, count = state
    return mean + (batch_mean - mean) / (count + 1), count + 1
