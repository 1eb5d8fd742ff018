"""Pairwise losses of the two log-ratios apart, and of means over tokens; as in ``reference_impl``, from the papers."""

from __future__ import annotations

from parity.reference_impl import (
    Logps,
    Slopes,
    log_ratios,
    log_sigmoid,
    logistic,
    logistic_slope,
    sigmoid,
    sigmoid_slope,
)

# The gap of means over tokens.


def mean_gap(*pair: Logps) -> float:
    """r_w / |y_w| - r_l / |y_l|."""
    winner, loser = log_ratios(*pair)
    return winner / len(pair[0]) - loser / len(pair[1])


def per_token(slope: float, *pair: Logps) -> Slopes:
    """The chain rule through a difference of means over tokens, from the derivative by that difference."""
    return slope / len(pair[0]), -slope / len(pair[1])


def ipo(*pair: Logps, beta: float, normalise: str = "mean", margin: float = 0.0) -> float:
    """Azar et al. 2023 (IPO), eq. 17: (d - 1 / (2 tau))^2, with beta for tau.

    The paper's d is of **sums** (also the DPO authors' code, OpenRLHF, NeMo-Aligner); TRL, HALOs and LLaMA-Factory take
    the **mean** over each answer's tokens. ``normalise`` says which, "mean" or "sum". A margin is taken off beta d.
    """
    return ipo_excess(*pair, beta=beta, normalise=normalise, margin=margin) ** 2


def ipo_excess(*pair: Logps, beta: float, normalise: str, margin: float) -> float:
    winner, loser = log_ratios(*pair)
    d = mean_gap(*pair) if normalise == "mean" else winner - loser
    return d - margin / beta - 1 / (2 * beta)


def ipo_slope(*pair: Logps, beta: float, normalise: str = "mean", margin: float = 0.0) -> Slopes:
    slope = 2 * ipo_excess(*pair, beta=beta, normalise=normalise, margin=margin)
    return per_token(slope, *pair) if normalise == "mean" else (slope, -slope)


def dpo_norm(*pair: Logps, beta: float, label_smoothing: float = 0.0, margin: float = 0.0) -> float:
    """Lambert et al. 2024 (Tulu 3), length-normalised DPO: DPO on r / |y|, **means** over each answer's tokens."""
    return logistic(beta * mean_gap(*pair) - margin, label_smoothing)


def dpo_norm_slope(*pair: Logps, beta: float, label_smoothing: float = 0.0, margin: float = 0.0) -> Slopes:
    return per_token(beta * logistic_slope(beta * mean_gap(*pair) - margin, label_smoothing), *pair)


# The two rewards apart. All are of sums.


def nca(*pair: Logps, beta: float) -> float:
    """Chen et al. 2024 (NCA), pairwise preference data, K = 2: with rewards R = beta r,

    -log sigmoid(R_w) - 1/2 (log sigmoid(-R_w) + log sigmoid(-R_l)).
    """
    winner, loser = (beta * r for r in log_ratios(*pair))
    return -log_sigmoid(winner) - 0.5 * (log_sigmoid(-winner) + log_sigmoid(-loser))


def nca_slope(*pair: Logps, beta: float) -> Slopes:
    winner, loser = (beta * r for r in log_ratios(*pair))
    return beta * (-sigmoid(-winner) + 0.5 * sigmoid(winner)), beta * 0.5 * sigmoid(loser)


def bco_pair(*pair: Logps, beta: float, delta: float) -> float:
    """Jung et al. 2024 (BCO), both answers of a pair: -log sigmoid(R_w - delta) - log sigmoid(-(R_l - delta)).

    R = beta r. ``delta`` is the reward shift (see ``reference_unpaired.running_mean``), a constant to the gradient;
    TRL's current "bco_pair" has none. The two terms are added, not averaged.
    """
    winner, loser = (beta * r - delta for r in log_ratios(*pair))
    return -log_sigmoid(winner) - log_sigmoid(-loser)


def bco_pair_slope(*pair: Logps, beta: float, delta: float) -> Slopes:
    winner, loser = (beta * r - delta for r in log_ratios(*pair))
    return -beta * sigmoid(-winner), beta * sigmoid(loser)


def sppo(*pair: Logps, beta: float) -> float:
    """Wu et al. 2024 (SPPO), hard labels: each answer's r is regressed on eta (P(it wins) - 1/2), with eta = 1 / beta:

    (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2. On r itself, not beta r.
    """
    winner, loser = log_ratios(*pair)
    return (winner - 1 / (2 * beta)) ** 2 + (loser + 1 / (2 * beta)) ** 2


def sppo_slope(*pair: Logps, beta: float) -> Slopes:
    winner, loser = log_ratios(*pair)
    return 2 * (winner - 1 / (2 * beta)), 2 * (loser + 1 / (2 * beta))


def apo_zero(*pair: Logps, beta: float) -> float:
    """D'Oosterlinck et al. 2024 (APO-zero): the winner up, the loser down. -sigmoid(R_w) + sigmoid(R_l), plus 1.

    The paper has no 1; TRL and those after it add it, so that the loss is never negative.
    """
    winner, loser = (beta * r for r in log_ratios(*pair))
    return sigmoid(-winner) + sigmoid(loser)


def apo_zero_slope(*pair: Logps, beta: float) -> Slopes:
    winner, loser = (beta * r for r in log_ratios(*pair))
    return -beta * sigmoid_slope(winner), beta * sigmoid_slope(loser)


def apo_down(*pair: Logps, beta: float) -> float:
    """D'Oosterlinck et al. 2024 (APO-down): both down, the loser further. sigmoid(R_w) - sigmoid(R_w - R_l), plus 1.

    The 1 as in ``apo_zero``.
    """
    winner, loser = (beta * r for r in log_ratios(*pair))
    return sigmoid(winner) + sigmoid(loser - winner)


def apo_down_slope(*pair: Logps, beta: float) -> Slopes:
    winner, loser = (beta * r for r in log_ratios(*pair))
    apart = sigmoid_slope(winner - loser)
    return beta * (sigmoid_slope(winner) - apart), beta * apart
