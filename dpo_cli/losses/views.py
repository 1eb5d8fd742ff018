"""The three shapes in which losses see a batch: comparisons, judged answers, rankings.

Log-probs of an answer are summed over its tokens; ``mean_`` names are divided by its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_cli.losses.types import AnswerLogps, Preferences


@dataclass(frozen=True)
class Answers:
    """One answer per entry: ``[n]`` each. Of comparisons the winners or the losers; of unpaired data all of them."""

    policy: Tensor
    """log pi(answer | prompt)."""
    log_ratio: Tensor | None
    """log pi(answer | prompt) - log pi_ref(answer | prompt), summed over the tokens' differences."""
    length: Tensor
    """Tokens, end-of-turn included."""
    concentration: Tensor | None
    """Mean over the tokens of log pi - log of the sum of squared probabilities (WPO)."""
    prompt: Tensor | None
    prompt_length: Tensor | None

    @property
    def ratio(self) -> Tensor:
        """The log-ratio; an error where there is no reference."""
        if self.log_ratio is None:
            raise ValueError("this loss needs reference log-probs, and was given none")
        return self.log_ratio

    @property
    def mean_ratio(self) -> Tensor:
        return self.ratio / self.length

    @property
    def mean_policy(self) -> Tensor:
        return self.policy / self.length


@dataclass(frozen=True)
class Pairs:
    """B comparisons."""

    chosen: Answers
    rejected: Answers
    score: Callable[[Tensor], Tensor]
    """The implicit reward over beta as a function of the log-ratio: the identity for the reverse KL."""
    margin: Tensor
    """``[B]``, in reward units."""
    label_prob: Tensor | None
    """``[B]``"""
    rows: Tensor
    """``[B]``: places in the global batch."""
    context: Any = None
    """What a loss with statistics over the global batch has found there."""

    @property
    def gap(self) -> Tensor:
        """``[B]``: winner's score less the loser's."""
        return self.score(self.chosen.ratio) - self.score(self.rejected.ratio)

    def swapped(self) -> Pairs:
        """The same comparisons with the other answer preferred."""
        return replace(self, chosen=self.rejected, rejected=self.chosen, margin=-self.margin)


@dataclass(frozen=True)
class Judged:
    """U answers with thumbs up or down."""

    answers: Answers
    good: Tensor
    """``[U]`` bool."""
    context: Any = None


@dataclass(frozen=True)
class Rankings:
    """R rankings."""

    answers: Answers
    """``[Q]``, those of one ranking together."""
    ranks: Tensor
    """``[Q]``: 0 = best."""
    ranking: Tensor
    """``[Q]``: the ranking of each."""
    count: int
    """R"""
    context: Any = None


View = Pairs | Judged | Rankings


def smoothed(x: Tensor, smoothing: float | Tensor) -> Tensor:
    """``-(1 - e) log sigmoid(x) - e log sigmoid(-x)``: a label that is wrong with probability ``e``."""
    return -(1 - smoothing) * logsigmoid(x) - smoothing * logsigmoid(-x)


def pairs_of(
    logps: AnswerLogps, preferences: Preferences, *, ld_alpha: float, score: Callable[[Tensor], Tensor]
) -> Pairs:
    """The batch's comparisons.

    Args:
        logps: of the batch's answers.
        preferences: of the batch.
        ld_alpha: LD-DPO (Liu et al. 2024, eq. 11): weight of the tokens by which an answer is longer than the
            other; 1 = as the others. Of the policy and of the reference, as in the paper (LLaMA-Factory and
            ms-swift leave the reference as it is).
        score: see ``Pairs``.
    """
    winners, losers = preferences.winners, preferences.losers
    return Pairs(
        chosen=_answers(logps, winners, losers, ld_alpha),
        rejected=_answers(logps, losers, winners, ld_alpha),
        score=score,
        margin=preferences.margins,
        label_prob=preferences.label_probs,
        rows=preferences.rows,
    )


def answers_of(logps: AnswerLogps) -> Answers:
    """All of the batch's answers, each on its own."""
    return _answers(logps, torch.arange(logps.count, device=logps.policy.device))


def judged_of(logps: AnswerLogps, preferences: Preferences) -> Judged:
    """The batch's judged answers."""
    return Judged(_answers(logps, preferences.labelled), preferences.labels)


def rankings_of(logps: AnswerLogps, preferences: Preferences) -> Rankings:
    """The batch's rankings."""
    return Rankings(
        answers=_answers(logps, preferences.ranked),
        ranks=preferences.ranks,
        ranking=preferences.ranking,
        count=len(preferences.ranking_weights),
    )


def _answers(logps: AnswerLogps, index: Tensor, opponents: Tensor | None = None, ld_alpha: float = 1.0) -> Answers:
    """The answers ``index`` ``[n]``; against ``opponents`` ``[n]`` where their lengths matter."""
    lengths = logps.lengths[index]
    if opponents is None or ld_alpha == 1.0:
        policy = logps.policy_sums[index]
        has_reference = logps.reference is not None
        ratio = logps.log_ratios[index] if has_reference else None
    else:
        entry = torch.repeat_interleave(torch.arange(len(index), device=index.device), lengths)
        place = torch.arange(len(entry), device=index.device) - (torch.cumsum(lengths, 0) - lengths)[entry]
        token = logps.starts[index][entry] + place
        weight = logps.policy.new_ones(len(entry)).masked_fill(place >= logps.lengths[opponents][entry], ld_alpha)

        def total(values: Tensor) -> Tensor:
            return values.new_zeros(len(index)).index_add(0, entry, values[token] * weight)

        policy = total(logps.policy)
        ratio = None if logps.reference is None else total(logps.token_ratios)
    concentration = None
    if logps.concentration is not None:
        concentration = logps.per_answer(logps.concentration)[index] / lengths
    return Answers(
        policy=policy,
        log_ratio=ratio,
        length=lengths,
        concentration=concentration,
        prompt=None if logps.prompt is None else logps.prompt[index],
        prompt_length=None if logps.prompt_lengths is None else logps.prompt_lengths[index],
    )
