"""What can be added to a loss; as in ``reference_impl``, from the papers.

Those that change log-probs take lists of token log-probs and return such lists, for any loss to be given. Divergences
and margins are arguments of the losses of ``reference_impl``.
"""

from __future__ import annotations

from collections.abc import Sequence

from parity.reference_free import mean_logp, sft
from parity.reference_impl import Logps, held_exp


def smoothing_from(label_prob: float) -> float:
    """The ``label_smoothing`` that says the label is right with this probability: 1 - e becomes q (Mitchell 2023)."""
    return 1.0 - label_prob


def with_sft(loss: float, policy_winner: Logps, weight: float) -> float:
    """RPO (Pang et al. 2024): plus the winner's negative log-likelihood, the **mean** per token as in the paper.

    Code bases differ: per answer (OpenRLHF, LLaMA-Factory), over the batch's tokens (TRL, ms-swift), or summed if asked
    (NeMo-RL).
    """
    return loss + weight * sft(policy_winner)


def weighted_sum(losses: Sequence[float], weights: Sequence[float]) -> float:
    """MPO (Wang et al. 2024, "mixed preference optimization"): weights as given, not made to add up to 1."""
    return sum(weight * loss for loss, weight in zip(losses, weights, strict=True))


def ld_weights(length: int, other_length: int, alpha: float) -> list[float]:
    """The weight of each of an answer's tokens: 1 up to the shorter of the pair's lengths, alpha beyond."""
    return [1.0 if number < min(length, other_length) else alpha for number in range(length)]


def ld(*pair: Logps, alpha: float) -> list[list[float]]:
    """Liu et al. 2024 (LD-DPO): log pi counts the length that both answers have in full, and the rest by alpha.

    In policy **and** reference, as TRL does; ms-swift and LLaMA-Factory in the policy only. A token's gradient is its
    weight times the slope.
    """
    policy_winner, policy_loser, reference_winner, reference_loser = pair
    winner = ld_weights(len(policy_winner), len(policy_loser), alpha)
    loser = ld_weights(len(policy_loser), len(policy_winner), alpha)
    weighed = ((policy_winner, winner), (policy_loser, loser), (reference_winner, winner), (reference_loser, loser))
    return [[weight * token for token, weight in zip(tokens, weights, strict=True)] for tokens, weights in weighed]


def wpo_weight(policies: Sequence[Logps], log_sum_squares: Sequence[Logps]) -> float:
    """Zhou et al. 2024 (WPO), sampled alignment: the product over a comparison's answers of

    exp(**mean** over tokens of log p(y_t) - log sum over v of p(v)^2), the product at most 1, as in TRL. It takes no
    gradient. ``log_sum_squares`` has log sum p^2 at each token of each answer. open-instruct's weight is another one:
    the exp of the summed log-probs.
    """
    closeness = sum(mean_logp(p) - mean_logp(s) for p, s in zip(policies, log_sum_squares, strict=True))
    return min(1.0, held_exp(closeness))


def humanline(policy: Logps, reference: Logps, low: float, high: float) -> list[float]:
    """HALOs' "humanline" (Liu et al. 2025): the policy's log-probs with each token's log-ratio clamped to [low, high].

    Before any sum. HALOs' own are -1 and 1.5.
    """
    return [r + min(max(p - r, low), high) for p, r in zip(policy, reference, strict=True)]


def humanline_passes(policy: Logps, reference: Logps, low: float, high: float) -> list[float]:
    """1 for the tokens that keep their gradient, 0 for those clamped."""
    return [float(low <= p - r <= high) for p, r in zip(policy, reference, strict=True)]


def reference_free(*pair: Logps) -> list[list[float]]:
    """A uniform reference, as in the DPO authors' code: log pi_ref = 0, as its constant cancels in a difference."""
    return [list(pair[0]), list(pair[1]), [0.0] * len(pair[0]), [0.0] * len(pair[1])]
