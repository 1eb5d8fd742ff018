"""Losses as their papers write them: one comparison at a time, lists of token log-probs in, a float64 out.

Written from the papers and from nothing in ``dpo_cli``, so that a mistake there is not repeated here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Logps = Sequence[float]
"""log pi(y_t | x, y_<t) of each token of one answer."""


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(-x))), for any x."""
    x = np.float64(x)
    return float(-np.log1p(np.exp(-x))) if x >= 0 else float(x - np.log1p(np.exp(x)))


def sigmoid(x: float) -> float:
    return float(np.exp(log_sigmoid(x)))


def sequence_logp(tokens: Logps) -> float:
    """log pi(y | x): the product over tokens, in logs."""
    total = np.float64(0.0)
    for token in tokens:
        total += np.float64(token)
    return float(total)


def reward(policy: Logps, reference: Logps, beta: float) -> float:
    """The implicit reward, beta log(pi(y|x) / pi_ref(y|x)), less the prompt's constant (DPO paper, eq. 5)."""
    return beta * (sequence_logp(policy) - sequence_logp(reference))


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
