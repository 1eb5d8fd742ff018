"""Pairwise losses without a reference; as in ``reference_impl``, from the papers.

``*pair`` may hold the reference's two answers as well; they are not read.
"""

from __future__ import annotations

import math

from parity.reference_impl import (
    Logps,
    Slopes,
    held_exp_slope,
    log_sigmoid,
    logistic,
    logistic_slope,
    sequence_logp,
    sigmoid,
)
from parity.reference_rewards import per_token

CERTAIN = -1e-12
"""Odds of an answer more probable than e to this are held here; a probability of 1 has none."""


def mean_logp(tokens: Logps) -> float:
    return sequence_logp(tokens) / len(tokens)


def logp_gap(*pair: Logps) -> float:
    return sequence_logp(pair[0]) - sequence_logp(pair[1])


# The winner's likelihood.


def sft(*pair: Logps) -> float:
    """-log pi(winner) / |winner|: the **mean** over the answer's tokens, then over answers.

    TRL's "sft" is over all tokens of the batch instead, so that long answers weigh more.
    """
    return -mean_logp(pair[0])


def sft_slope(*pair: Logps) -> Slopes:
    return -1 / len(pair[0]), 0.0


# Losses of summed log-probs.


def slic(*pair: Logps, delta: float, sft_weight: float = 0.0, margin: float = 0.0) -> float:
    """Zhao et al. 2023 (SLiC-HF): max(0, delta - log pi(winner) + log pi(loser)) + sft_weight SFT.

    **Sums** in the first. The paper's regulariser is the cross-entropy of an SFT target; here the target is the winner,
    and the cross-entropy ``sft``'s mean per token.
    """
    return max(0.0, delta + margin - logp_gap(*pair)) + sft_weight * sft(*pair)


def slic_slope(*pair: Logps, delta: float, sft_weight: float = 0.0, margin: float = 0.0) -> Slopes:
    """0 at the kink itself."""
    slope = -1.0 if delta + margin - logp_gap(*pair) > 0 else 0.0
    return slope + sft_weight * sft_slope(*pair)[0], -slope


def cpo(*pair: Logps, beta: float, sft_weight: float, label_smoothing: float = 0.0, margin: float = 0.0) -> float:
    """Xu et al. 2024 (CPO): DPO with a uniform reference, plus the winner's negative log-likelihood.

    **Sums** in the first. The likelihood is ``sft``'s mean per token (TRL: over the batch's tokens). TRL's SimPO is its
    CPO, and keeps this term unless its weight is set to 0.
    """
    return logistic(beta * logp_gap(*pair) - margin, label_smoothing) + sft_weight * sft(*pair)


def cpo_slope(
    *pair: Logps, beta: float, sft_weight: float, label_smoothing: float = 0.0, margin: float = 0.0
) -> Slopes:
    slope = beta * logistic_slope(beta * logp_gap(*pair) - margin, label_smoothing)
    return slope + sft_weight * sft_slope(*pair)[0], -slope


# Losses of mean log-probs.


def simpo(*pair: Logps, beta: float, gamma_ratio: float, label_smoothing: float = 0.0, margin: float = 0.0) -> float:
    """Meng et al. 2024 (SimPO), eq. 6: -log sigmoid(beta (m_w - m_l) - gamma), m the **mean** log-prob per token.

    gamma = gamma_ratio beta: the authors tune gamma / beta, and so do the code bases' defaults. The smoothed term is at
    minus all of it, gamma included, as in the authors' code.
    """
    return logistic(simpo_gap(*pair, beta=beta, gamma_ratio=gamma_ratio) - margin, label_smoothing)


def simpo_gap(*pair: Logps, beta: float, gamma_ratio: float) -> float:
    return beta * (mean_logp(pair[0]) - mean_logp(pair[1])) - gamma_ratio * beta


def simpo_slope(
    *pair: Logps, beta: float, gamma_ratio: float, label_smoothing: float = 0.0, margin: float = 0.0
) -> Slopes:
    z = simpo_gap(*pair, beta=beta, gamma_ratio=gamma_ratio) - margin
    return per_token(beta * logistic_slope(z, label_smoothing), *pair)


def alphapo(*pair: Logps, beta: float, alpha: float, gamma_ratio: float, margin: float = 0.0) -> float:
    """Gupta et al. 2025 (AlphaPO): SimPO on rewards beta (1 - p^-alpha) / alpha, p = exp(**mean** log-prob per token).

    alpha = 0 is SimPO. p^-alpha is held at e^80, for one comparison in which it is beyond any use.
    """
    gap = alpha_reward(mean_logp(pair[0]), alpha) - alpha_reward(mean_logp(pair[1]), alpha)
    return -log_sigmoid(beta * gap - gamma_ratio * beta - margin)


def alpha_reward(logp: float, alpha: float) -> float:
    """(1 - p^-alpha) / alpha at p = exp(logp)."""
    if alpha == 0:
        return logp
    return -math.expm1(min(-alpha * logp, 80.0)) / alpha


def alphapo_slope(*pair: Logps, beta: float, alpha: float, gamma_ratio: float, margin: float = 0.0) -> Slopes:
    winner, loser = mean_logp(pair[0]), mean_logp(pair[1])
    z = beta * (alpha_reward(winner, alpha) - alpha_reward(loser, alpha)) - gamma_ratio * beta - margin
    slope_winner, slope_loser = per_token(-beta * sigmoid(-z), *pair)
    return slope_winner * held_exp_slope(-alpha * winner), slope_loser * held_exp_slope(-alpha * loser)


def orpo(*pair: Logps, beta: float, prompt: Logps = ()) -> float:
    """Hong et al. 2024 (ORPO), eq. 6 and 7: SFT - beta log sigmoid(log odds(winner) - log odds(loser)); beta is lambda.

    odds = p / (1 - p) with p = exp(**mean** log-prob per token). SFT is per token of the winner and, if given, of the
    ``prompt`` before it: the authors' code trains on the prompt too. A p of 1 is held at exp(``CERTAIN``).
    """
    return orpo_likelihood(*pair, prompt=prompt) - beta * log_sigmoid(log_odds(pair[0]) - log_odds(pair[1]))


def orpo_likelihood(*pair: Logps, prompt: Logps) -> float:
    return -(sequence_logp(prompt) + sequence_logp(pair[0])) / (len(prompt) + len(pair[0]))


def log_odds(tokens: Logps) -> float:
    logp = min(mean_logp(tokens), CERTAIN)
    return logp - math.log(-math.expm1(logp))


def log_odds_slope(tokens: Logps) -> float:
    """By the mean log-prob: 1 + p / (1 - p) = 1 / (1 - p)."""
    logp = mean_logp(tokens)
    return -1 / math.expm1(logp) if logp <= CERTAIN else 0.0


def orpo_slope(*pair: Logps, beta: float, prompt: Logps = ()) -> Slopes:
    """A prompt's token has the likelihood's share alone: -1 / (tokens of the prompt and the winner)."""
    slope = -beta * sigmoid(-(log_odds(pair[0]) - log_odds(pair[1])))
    winner, loser = per_token(slope, *pair)
    likelihood = -1 / (len(prompt) + len(pair[0]))
    return likelihood + winner * log_odds_slope(pair[0]), loser * log_odds_slope(pair[1])
