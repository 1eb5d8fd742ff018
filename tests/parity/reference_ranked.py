"""Losses of a whole batch of pairs, or of one prompt's ranked answers; as in ``reference_impl``, from the papers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from parity.reference_impl import Logps, log_ratio, logistic, logistic_slope

Batch = Sequence[Logps]


def ranks(values: Sequence[float]) -> list[int]:
    """Each value's place from the smallest, 0; equals in the order they came."""
    order = sorted(range(len(values)), key=lambda number: values[number])
    return [order.index(number) for number in range(len(values))]


def matched_by_rank(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """left[i] less the value of ``right`` that has the same place from the smallest."""
    return [value - sorted(right)[rank] for value, rank in zip(left, ranks(left), strict=True)]


def aot_gaps(
    policy_winners: Batch, policy_losers: Batch, reference_winners: Batch, reference_losers: Batch
) -> list[float]:
    policy = [log_ratio(w, other) for w, other in zip(policy_winners, policy_losers, strict=True)]
    reference = [log_ratio(w, other) for w, other in zip(reference_winners, reference_losers, strict=True)]
    return matched_by_rank(policy, reference)


def aot(*batch: Batch, beta: float, label_smoothing: float = 0.0) -> list[float]:
    """Melnyk et al. 2024 (AOT), paired: the policy's log-ratios of winner to loser should dominate the reference's.

    Both are sorted, and -log sigmoid(beta (u_(k) - v_(k))) taken of the k-th smallest of each; **sums** over tokens.
    Loss i is that of pair i's own policy log-ratio, whatever reference it meets, so the order is the batch's. The sort
    is over the batch; TRL's over one device's micro-batch. Smoothing as in TRL: cDPO's.
    """
    return [logistic(beta * gap, label_smoothing) for gap in aot_gaps(*batch)]


def aot_slope(*batch: Batch, beta: float, label_smoothing: float = 0.0) -> tuple[list[float], list[float]]:
    """Of the losses' sum, by each winner's and each loser's summed log-prob. The order takes no gradient."""
    winners = [beta * logistic_slope(beta * gap, label_smoothing) for gap in aot_gaps(*batch)]
    return winners, [-slope for slope in winners]


def unpaired_log_ratios(
    policy_winners: Batch, policy_losers: Batch, reference_winners: Batch, reference_losers: Batch
) -> tuple[list[float], list[float]]:
    winners = [log_ratio(p, r) for p, r in zip(policy_winners, reference_winners, strict=True)]
    return winners, [log_ratio(p, r) for p, r in zip(policy_losers, reference_losers, strict=True)]


def aot_unpaired(*batch: Batch, beta: float, label_smoothing: float = 0.0) -> list[float]:
    """Melnyk et al. 2024 (AOT), unpaired: the winners' log-ratios r should dominate the losers', sorted as in ``aot``.

    Loss i is that of winner i and the loser of its rank; **sums** over tokens.
    """
    winners, losers = unpaired_log_ratios(*batch)
    return [logistic(beta * gap, label_smoothing) for gap in matched_by_rank(winners, losers)]


def aot_unpaired_slope(*batch: Batch, beta: float, label_smoothing: float = 0.0) -> tuple[list[float], list[float]]:
    """As ``aot_slope``: a loser's is minus that of the winner it met."""
    winners, losers = unpaired_log_ratios(*batch)
    slopes = [beta * logistic_slope(beta * gap, label_smoothing) for gap in matched_by_rank(winners, losers)]
    by_rank = dict(zip(ranks(winners), slopes, strict=True))
    return slopes, [-by_rank[rank] for rank in ranks(losers)]


# Plackett-Luce.


def log_sum_exp(values: Sequence[float]) -> float:
    highest = max(values)
    return float(highest + np.log(sum(np.exp(value - highest) for value in values)))


def contests(scores: Sequence[float]) -> list[tuple[int, list[int]]]:
    """(i, every answer strictly worse than i), for each i that has one. A higher score is better."""
    against = [(i, [j for j, other in enumerate(scores) if other < score]) for i, score in enumerate(scores)]
    return [(i, worse) for i, worse in against if worse]


def plackett_luce(policies: Batch, references: Batch, scores: Sequence[float], *, beta: float) -> float:
    """Rafailov et al. 2023, appendix A.3 (DPO under Plackett-Luce), one prompt's answers: with rewards R = beta r,

    the **sum** over answers of log sum exp over {i and all worse} - R_i; r a **sum** over tokens. The paper has no
    ties: here tied answers are not compared with each other, only with what is worse than both. Two answers are DPO; a
    group without any preference is 0.
    """
    rewards = [beta * log_ratio(policy, reference) for policy, reference in zip(policies, references, strict=True)]
    terms = (log_sum_exp([rewards[j] for j in (i, *worse)]) - rewards[i] for i, worse in contests(scores))
    return sum(terms, 0.0)


def plackett_luce_slope(policies: Batch, references: Batch, scores: Sequence[float], *, beta: float) -> list[float]:
    """dL / d log pi(answer), each: beta times (its softmax in every contest it is in, less 1 in its own)."""
    rewards = [beta * log_ratio(policy, reference) for policy, reference in zip(policies, references, strict=True)]
    slopes = [0.0] * len(rewards)
    for i, worse in contests(scores):
        total = log_sum_exp([rewards[j] for j in (i, *worse)])
        slopes[i] -= beta
        for j in (i, *worse):
            slopes[j] += beta * float(np.exp(rewards[j] - total))
    return slopes
