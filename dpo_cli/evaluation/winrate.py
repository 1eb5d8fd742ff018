"""Win rates of one model's answers over another's, by any judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from dpo_cli.evaluation.intervals import Bootstrap, Estimate

Judge = Callable[[Sequence[tuple[str, str, str]]], Sequence[float | None]]
"""From (question, first answer, second answer) to how surely the first is the better one: 1, 0, 0.5 for a tie, or
anything between; None where it gave no verdict."""
_PENALTY = 1e-3
"""On the length's weight, so that there is one where length decides all."""


@dataclass(frozen=True)
class Verdicts:
    """What a judge said, each comparison heard in both orders."""

    wins: NDArray
    """``[P]`` in 0..1: how surely the first model's answer is better, the mean of both orders; NaN = no verdict."""
    agreed: NDArray
    """``[P]`` bool: whether both orders had the same winner."""


def judge_pairs(judge: Judge, questions: Sequence[str], answers: Sequence[str], others: Sequence[str]) -> Verdicts:
    """Ask for each pair of answers in both orders, so that a judge that likes the first place gains nothing by it.

    A comparison without a verdict in one of the orders has none.
    """
    there = judge([(q, a, b) for q, a, b in zip(questions, answers, others, strict=True)])
    back = judge([(q, b, a) for q, a, b in zip(questions, answers, others, strict=True)])
    first = np.array([np.nan if value is None else value for value in there], dtype=np.float64)
    second = 1 - np.array([np.nan if value is None else value for value in back], dtype=np.float64)
    return Verdicts((first + second) / 2, np.sign(first - 0.5) == np.sign(second - 0.5))


def win_rate(verdicts: Verdicts, lengths: NDArray, bootstrap: Bootstrap) -> dict[str, Any]:
    """The share of prompts won, a tie counting half, and what it would be at equal lengths.

    ``length_controlled``: as in AlpacaEval 2 (Dubois et al. 2024) the verdicts are fitted by a logistic regression on
    tanh of the standardised difference of lengths, and the win rate is read off where the lengths are equal. Their
    third term, how hard each prompt is, is fitted on a hundred models' answers and is left out: this is comparable
    between runs, not with their leaderboard.

    Args:
        verdicts: of the first model's answers.
        lengths: ``[P, 2]``: characters of the two answers.
        bootstrap: over prompts.
    """
    heard = np.isfinite(verdicts.wins)
    wins, gaps = verdicts.wins[heard], (lengths[heard, 0] - lengths[heard, 1]).astype(np.float64)
    found: dict[str, Any] = {
        "prompts": int(heard.sum()),
        "without_verdict": int((~heard).sum()),
        "agreement": float(verdicts.agreed[heard].mean()) if heard.any() else None,
    }
    if not heard.any():
        return found
    columns = {"count": np.ones(len(wins)), "wins": wins, "longer": (gaps > 0) + 0.5 * (gaps == 0)}
    rates = bootstrap(columns, np.arange(len(wins)), _rates)
    return {**found, **rates, "length_controlled": _length_controlled(wins, gaps, bootstrap)}


def _rates(sums: Mapping[str, NDArray]) -> dict[str, NDArray]:
    return {"win_rate": sums["wins"] / sums["count"], "share_longer": sums["longer"] / sums["count"]}


def _length_controlled(wins: NDArray, gaps: NDArray, bootstrap: Bootstrap) -> Estimate:
    """The fit, and its percentiles over resampled prompts: a quarter of the usual number, as each is a fit."""
    value = length_controlled(wins, gaps)
    pick = np.random.default_rng(bootstrap.seed)
    drawn = [pick.integers(0, len(wins), len(wins)) for _ in range(max(100, bootstrap.resamples // 4))]
    values = [length_controlled(wins[rows], gaps[rows]) for rows in drawn] if len(wins) > 1 else []
    edge = (1 - bootstrap.level) / 2
    low, high = np.quantile(values, [edge, 1 - edge]) if values else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def length_controlled(wins: NDArray, gaps: NDArray) -> float:
    """The win rate at equal lengths: see ``win_rate``.

    Args:
        wins: ``[P]`` in 0..1.
        gaps: ``[P]``: the first answer's length less the second's.
    """
    spread = float(gaps.std())
    if spread == 0:
        return float(wins.mean())
    shape = np.tanh(gaps / spread)

    def loss(weights: NDArray) -> tuple[float, NDArray]:
        logits = weights[0] + weights[1] * shape
        miss = expit(logits) - wins
        value = np.mean(np.logaddexp(0, logits) - wins * logits) + _PENALTY * (weights**2).sum()
        return float(value), np.array([miss.mean(), (miss * shape).mean()]) + 2 * _PENALTY * weights

    fitted = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return float(expit(fitted[0]))
