"""Losses as their papers write them: one comparison at a time, lists of token log-probs in, a float64 out.

Written from the papers and from nothing in ``dpo_cli``, so that a mistake there is not repeated here. This file has the
pairwise losses of the gap between two log-ratios; ``reference_rewards`` those that see each log-ratio, or its mean;
``reference_free`` those without a reference; ``reference_unpaired`` and ``reference_ranked`` what is not a pair on its
own; ``reference_modifiers`` what can be added.

``*pair`` is the policy's winner and loser, then the reference's, one list of token log-probs each; hyperparameters are
keywords. Of an answer y with ``|y|`` tokens, its end-of-turn included: r = log pi(y|x) - log pi_ref(y|x), a **sum**
over tokens; d = r of the winner - r of the loser. Every ``<name>_slope`` takes what ``<name>`` takes and returns
(dL / d log pi(winner), dL / d log pi(loser)), by the **summed** log-probs: the gradient at each token of that answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Logps = Sequence[float]
"""log pi(y_t | x, y_<t) of each token of one answer."""

Slopes = tuple[float, float]
"""Winner's, loser's."""

LARGEST_EXPONENT = 80.0
"""Ratios enter some losses as exp; beyond this they are held, and have no gradient. e^80 is finite in float32 too."""


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(-x))), for any x."""
    x = np.float64(x)
    return float(-np.log1p(np.exp(-x))) if x >= 0 else float(x - np.log1p(np.exp(x)))


def sigmoid(x: float) -> float:
    return float(np.exp(log_sigmoid(x)))


def sigmoid_slope(x: float) -> float:
    return sigmoid(x) * sigmoid(-x)


def held_exp(x: float) -> float:
    return float(np.exp(np.float64(min(x, LARGEST_EXPONENT))))


def held_exp_slope(x: float) -> float:
    return held_exp(x) if x <= LARGEST_EXPONENT else 0.0


def sequence_logp(tokens: Logps) -> float:
    """log pi(y | x): the product over tokens, in logs."""
    total = np.float64(0.0)
    for token in tokens:
        total += np.float64(token)
    return float(total)


def log_ratio(policy: Logps, reference: Logps) -> float:
    return sequence_logp(policy) - sequence_logp(reference)


def log_ratios(*pair: Logps) -> tuple[float, float]:
    policy_winner, policy_loser, reference_winner, reference_loser = pair
    return log_ratio(policy_winner, reference_winner), log_ratio(policy_loser, reference_loser)


def reward(policy: Logps, reference: Logps, beta: float) -> float:
    """The implicit reward, beta log(pi(y|x) / pi_ref(y|x)), less the prompt's constant (DPO paper, eq. 5)."""
    return beta * (sequence_logp(policy) - sequence_logp(reference))


# f-DPO: what stands where the log-ratio stood.


def divergence_reward(log_u: float, divergence: str = "reverse_kl", divergence_alpha: float = 0.5) -> float:
    """f'(u) at u = pi(y|x) / pi_ref(y|x), less its constant: Wang et al. 2023 (f-DPO), table of divergences.

    reverse_kl log u; forward_kl -1/u; js log(2u / (1 + u)); alpha (1 - u^-alpha) / alpha, whose limit at 0 is
    reverse_kl and which at 1 is forward_kl plus 1. u is of the whole sequence. What is held at ``LARGEST_EXPONENT`` is
    the exponent itself, -log u or -alpha log u, so that a small alpha meets reverse_kl at any ratio. TRL's alpha is 1 -
    this one.
    """
    if divergence == "forward_kl":
        return -held_exp(-log_u)
    if divergence == "js":
        return math.log(2) + log_sigmoid(log_u)
    if divergence == "alpha" and divergence_alpha != 0:
        return float(-np.expm1(min(-divergence_alpha * log_u, LARGEST_EXPONENT)) / divergence_alpha)
    return log_u


def divergence_slope(log_u: float, divergence: str = "reverse_kl", divergence_alpha: float = 0.5) -> float:
    """d f'(u) / d log u = u f''(u)."""
    if divergence == "forward_kl":
        return held_exp_slope(-log_u)
    if divergence == "js":
        return sigmoid(-log_u)
    if divergence == "alpha":
        return held_exp_slope(-divergence_alpha * log_u)
    return 1.0


def reward_gap(*pair: Logps, beta: float, margin: float = 0.0, **divergence: Any) -> float:
    """z = beta d - margin, where d is the winner's f'(u) less the loser's: the log-ratios' gap unless told otherwise.

    ``margin`` is in units of reward. ``divergence`` and ``divergence_alpha`` are those of ``divergence_reward``.
    """
    winner, loser = log_ratios(*pair)
    return beta * (divergence_reward(winner, **divergence) - divergence_reward(loser, **divergence)) - margin


def down_the_gap(slope: float, *pair: Logps, beta: float, margin: float = 0.0, **divergence: Any) -> Slopes:
    """The chain rule through ``reward_gap``, from dL/dz. The margin is a constant."""
    winner, loser = log_ratios(*pair)
    return (
        slope * beta * divergence_slope(winner, **divergence),
        -slope * beta * divergence_slope(loser, **divergence),
    )


# Losses of the gap alone. ``**gap`` is ``margin``, ``divergence`` and ``divergence_alpha`` of ``reward_gap``.


def dpo_pair(
    policy_winner: Logps,
    policy_loser: Logps,
    reference_winner: Logps,
    reference_loser: Logps,
    beta: float,
    label_smoothing: float = 0.0,
) -> float:
    """Rafailov et al. 2023, eq. 7, of one pair; with Mitchell 2023 ("A note on DPO with noisy preferences"), eq. 3:

    if a share e of the labels is flipped, the loss is its expectation, (1 - e) L(w, l) + e L(l, w).
    """
    as_labelled = -log_sigmoid(
        reward(policy_winner, reference_winner, beta) - reward(policy_loser, reference_loser, beta)
    )
    if label_smoothing == 0.0:
        return as_labelled
    flipped = -log_sigmoid(reward(policy_loser, reference_loser, beta) - reward(policy_winner, reference_winner, beta))
    return (1 - label_smoothing) * as_labelled + label_smoothing * flipped


def dpo_pair_slope(margin: float, beta: float, label_smoothing: float = 0.0) -> float:
    """dL / d log pi(winner) of one pair whose rewards differ by ``margin``; the loser's is its negative.

    Without smoothing that is -beta sigmoid(-margin), the weight in the gradient below eq. 7 of the paper.
    """
    return -(1 - label_smoothing) * beta * sigmoid(-margin) + label_smoothing * beta * sigmoid(margin)


def logistic(z: float, label_smoothing: float = 0.0) -> float:
    """Cross-entropy of P(winner is better) = sigmoid(z) against 1 - label_smoothing."""
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


def logistic_slope(z: float, label_smoothing: float = 0.0) -> float:
    return sigmoid(z) - (1 - label_smoothing)


def dpo(*pair: Logps, beta: float, label_smoothing: float = 0.0, **gap: Any) -> float:
    """``dpo_pair`` with a margin and other divergences: sums, -(1 - e) log sigmoid(z) - e log sigmoid(-z).

    With a margin the smoothing is of the label that the whole z predicts: the flipped term is at -(beta d - margin), as
    SimPO's own code has it, not at -beta d - margin. TRL's "sigmoid" ignores label smoothing.
    """
    return logistic(reward_gap(*pair, beta=beta, **gap), label_smoothing)


def dpo_slope(*pair: Logps, beta: float, label_smoothing: float = 0.0, **gap: Any) -> Slopes:
    slope = logistic_slope(reward_gap(*pair, beta=beta, **gap), label_smoothing)
    return down_the_gap(slope, *pair, beta=beta, **gap)


def robust(*pair: Logps, beta: float, label_smoothing: float, **gap: Any) -> float:
    """Chowdhury, Kini, Natarajan 2024 (rDPO), the unbiased loss under labels flipped at rate e < 1/2; sums:

    ((1 - e) L(z) - e L(-z)) / (1 - 2e) with L = -log sigmoid. Its expectation over flips is DPO without flips, which is
    why the second sign is not cDPO's. It can be negative. Code bases agree.
    """
    z, e = reward_gap(*pair, beta=beta, **gap), label_smoothing
    return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)


def robust_slope(*pair: Logps, beta: float, label_smoothing: float, **gap: Any) -> Slopes:
    z, e = reward_gap(*pair, beta=beta, **gap), label_smoothing
    slope = -((1 - e) * sigmoid(-z) + e * sigmoid(z)) / (1 - 2 * e)
    return down_the_gap(slope, *pair, beta=beta, **gap)


def hinge(*pair: Logps, beta: float, **gap: Any) -> float:
    """Liu et al. 2023 (RSO), hinge-norm: max(0, 1 - gamma d), with beta for gamma; sums."""
    return max(0.0, 1.0 - reward_gap(*pair, beta=beta, **gap))


def hinge_slope(*pair: Logps, beta: float, **gap: Any) -> Slopes:
    """0 at the kink itself."""
    slope = -1.0 if reward_gap(*pair, beta=beta, **gap) < 1.0 else 0.0
    return down_the_gap(slope, *pair, beta=beta, **gap)


def exo(*pair: Logps, beta: float, label_smoothing: float, **gap: Any) -> float:
    """Ji et al. 2024 (EXO), the preference loss at K = 2: KL(p_policy || p_label), the *reverse* KL; sums.

    p_policy = softmax of the two rewards = (sigmoid(z), sigmoid(-z)); p_label = (1 - e, e). e must be above 0: there is
    no unsmoothed EXO. DPO is the KL the other way round.
    """
    z, e = reward_gap(*pair, beta=beta, **gap), label_smoothing
    return sigmoid(z) * (log_sigmoid(z) - math.log1p(-e)) + sigmoid(-z) * (log_sigmoid(-z) - math.log(e))


def exo_slope(*pair: Logps, beta: float, label_smoothing: float, **gap: Any) -> Slopes:
    """dL/dz = sigmoid'(z) (z - log((1 - e) / e)): the log-probs' own derivatives cancel."""
    z, e = reward_gap(*pair, beta=beta, **gap), label_smoothing
    return down_the_gap(sigmoid_slope(z) * (z - (math.log1p(-e) - math.log(e))), *pair, beta=beta, **gap)


def discopop(*pair: Logps, beta: float, tau: float, **gap: Any) -> float:
    """Lu et al. 2024 (DiscoPOP), LRML: (1 - m) (-log sigmoid(z)) + m exp(-z) with m = sigmoid(z / tau); sums.

    m exp(-z) is one exponential here, so that it stays finite at any z for tau <= 1 (beyond, LRML itself is unbounded).
    """
    z = reward_gap(*pair, beta=beta, **gap)
    return -sigmoid(-z / tau) * log_sigmoid(z) + held_exp(log_sigmoid(z / tau) - z)


def discopop_slope(*pair: Logps, beta: float, tau: float, **gap: Any) -> Slopes:
    z = reward_gap(*pair, beta=beta, **gap)
    logistic_part = sigmoid_slope(z / tau) / tau * log_sigmoid(z) - sigmoid(-z / tau) * sigmoid(-z)
    exponential_part = held_exp_slope(log_sigmoid(z / tau) - z) * (sigmoid(-z / tau) / tau - 1)
    return down_the_gap(logistic_part + exponential_part, *pair, beta=beta, **gap)


def rpo_bwd_kl(*pair: Logps, beta: float, true_gap: float, eta: float = 1.0, **gap: Any) -> float:
    """Reward-aware preference optimisation (Nemotron-4 340B report; Sun et al. 2025), the reports' main distance; sums:

    KL(Bernoulli(sigmoid(eta true_gap)) || Bernoulli(sigmoid(z))). An infinitely sure judge makes it DPO. Named after
    NeMo-Aligner's ``rpo_bwd_kl``.
    """
    z, t = reward_gap(*pair, beta=beta, **gap), eta * true_gap
    return bernoulli_kl(t, z)


def rpo_bwd_kl_slope(*pair: Logps, beta: float, true_gap: float, eta: float = 1.0, **gap: Any) -> Slopes:
    z, t = reward_gap(*pair, beta=beta, **gap), eta * true_gap
    return down_the_gap(sigmoid(z) - sigmoid(t), *pair, beta=beta, **gap)


def rpo_fwd_kl(*pair: Logps, beta: float, true_gap: float, eta: float = 1.0, **gap: Any) -> float:
    """As ``rpo_bwd_kl`` with the KL's sides exchanged. It is EXO with e = sigmoid(-eta true_gap), and like it grows
    without bound as the judge becomes sure."""
    z, t = reward_gap(*pair, beta=beta, **gap), eta * true_gap
    return bernoulli_kl(z, t)


def rpo_fwd_kl_slope(*pair: Logps, beta: float, true_gap: float, eta: float = 1.0, **gap: Any) -> Slopes:
    z, t = reward_gap(*pair, beta=beta, **gap), eta * true_gap
    return down_the_gap(sigmoid_slope(z) * (z - t), *pair, beta=beta, **gap)


def bernoulli_kl(a: float, b: float) -> float:
    """KL(Bernoulli(sigmoid(a)) || Bernoulli(sigmoid(b)))."""
    return sigmoid(a) * (log_sigmoid(a) - log_sigmoid(b)) + sigmoid(-a) * (log_sigmoid(-a) - log_sigmoid(-b))


def rpo_sq(*pair: Logps, beta: float, true_gap: float, eta: float = 1.0, **gap: Any) -> float:
    """As ``rpo_bwd_kl`` with the squared distance, (z - eta true_gap)^2, without a factor 1/2, as in NeMo-Aligner."""
    return (reward_gap(*pair, beta=beta, **gap) - eta * true_gap) ** 2


def rpo_sq_slope(*pair: Logps, beta: float, true_gap: float, eta: float = 1.0, **gap: Any) -> Slopes:
    slope = 2 * (reward_gap(*pair, beta=beta, **gap) - eta * true_gap)
    return down_the_gap(slope, *pair, beta=beta, **gap)
