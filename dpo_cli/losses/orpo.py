"""Odds Ratio Preference Optimization."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dpo_cli.losses.views import Answers, Pairs, smoothed


def orpo(pairs: Pairs, *, beta: float, nll: Literal["answer", "full"]) -> Tensor:
    """ORPO (Hong et al. 2024, eq. 6 and 7): ``NLL_w - lambda log sigmoid(log odds_w - log odds_l)``, no reference.

    ``odds = p / (1 - p)`` with ``p = exp(mean log-prob per token)``. NLL is the mean over the chosen answer's tokens,
    or with ``full`` over the prompt's as well (trl's, over all of a micro-batch's tokens).

    Args:
        pairs: B comparisons; a label's probability is of the odds, not of the likelihood.
        beta: the paper's lambda.
        nll: over the ``answer`` or over prompt and answer (``full``).

    Returns:
        ``[B]``
    """
    chosen, rejected = pairs.chosen, pairs.rejected
    odds = _log_odds(chosen.mean_policy) - _log_odds(rejected.mean_policy)
    wrong = 0.0 if pairs.label_prob is None else 1 - pairs.label_prob
    return _nll(chosen, nll) + beta * smoothed(odds, wrong)


def _nll(answers: Answers, nll: Literal["answer", "full"]) -> Tensor:
    if nll == "answer":
        return -answers.mean_policy
    if answers.prompt is None or answers.prompt_length is None:
        raise ValueError("nll=full needs the prompt's log-probs, and was given none")
    return -(answers.policy + answers.prompt) / (answers.length + answers.prompt_length)


def _log_odds(mean_logp: Tensor) -> Tensor:
    """log p - log(1 - p). Where p rounds to 1 the odds are those of the nearest number below it."""
    below = mean_logp.clamp(max=-torch.finfo(mean_logp.dtype).eps)
    return below - torch.log(-torch.expm1(below))
