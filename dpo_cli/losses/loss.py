"""What training and evaluation call: one loss, or a weighted sum of several, with modifiers and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpo_cli.losses.divergences import divergence_score, reverse_kl
from dpo_cli.losses.registry import LOSSES, Kind, Spec, State
from dpo_cli.losses.types import AnswerLogps, Preferences
from dpo_cli.losses.views import Answers, Pairs, View, answers_of, judged_of, pairs_of, rankings_of
from dpo_cli.metric_names import LOGPS, REWARDS, of_loss


@dataclass(frozen=True)
class Result:
    """What a loss makes of a micro-batch."""

    losses: Tensor
    """One per comparison, judged answer or ranking: ``[B]``, weighted, differentiable."""
    metrics: dict[str, Tensor]
    """Values ``[n]`` whose means are reported; without gradient."""


@dataclass(frozen=True)
class Modifiers:
    """What changes a loss's inputs, or is added to it. The defaults change nothing."""

    sft_weight: float = 0.0
    """x the mean negative log-prob per token of the chosen answer is added (RPO: Pang et al. 2024, eq. 1, whose
    likelihood is divided by the length as here; Liu et al. 2024 sum). It is no preference: a label's probability
    and WPO's weight don't scale it, and it is of the policy's own log-probs, which neither LD-DPO weighs nor
    humanline clamps."""
    ld_alpha: float = 1.0
    """LD-DPO: see ``pairs_of``."""
    wpo: bool = False
    """Comparisons count by how likely the policy is to have said both answers (Zhou et al. 2024, eq. 2): exp of the
    mean of log pi - log sum of squared probabilities, of both, at most 1. trl does not hold it at 1."""
    divergence: str = "reverse_kl"
    divergence_alpha: float | None = None
    """See ``divergences``."""
    humanline: tuple[float, float] | None = None
    """Token log-ratios are held inside this range (Liu et al. 2025, "humanline", as in HALOs)."""
    reference_free: bool = False
    """The reference is uniform: log-ratios are log-probs."""


@dataclass(frozen=True)
class Term:
    """One loss with its hyperparameters."""

    spec: Spec
    hyper: Mapping[str, Any]
    modifiers: Modifiers

    @property
    def needs_reference(self) -> bool:
        return self.spec.reference and not self.modifiers.reference_free

    def adjusted(self, logps: AnswerLogps) -> AnswerLogps:
        """The log-probs with the modifiers that work on tokens."""
        if self.modifiers.reference_free:
            logps = logps.with_reference(torch.zeros_like(logps.policy))
        return logps if self.modifiers.humanline is None else logps.clamped(*self.modifiers.humanline)

    def view(self, logps: AnswerLogps, preferences: Preferences) -> View:
        """The batch as this loss sees it."""
        logps = self.adjusted(logps)
        if self.spec.kind == "answers":
            return judged_of(logps, preferences)
        if self.spec.kind == "rankings":
            return rankings_of(logps, preferences)
        score = divergence_score(self.modifiers.divergence, self.modifiers.divergence_alpha)
        return pairs_of(logps, preferences, ld_alpha=self.modifiers.ld_alpha, score=score)

    def losses(self, view: View, logps: AnswerLogps, preferences: Preferences) -> Tensor:
        """``[B]``, unweighted, of a view of these."""
        if not isinstance(view, Pairs):
            return self.spec.function(view, **self.hyper)
        losses = self._preference(view)
        if self.modifiers.wpo:
            losses = losses * _wpo_weight(view)
        if self.modifiers.sft_weight:
            mean_logps = logps.policy_sums / logps.lengths
            losses = losses - self.modifiers.sft_weight * mean_logps[preferences.winners]
        return losses

    def _preference(self, pairs: Pairs) -> Tensor:
        """The loss under the labels' probabilities, where rows have them: its expectation."""
        if pairs.label_prob is None or self.spec.own_labels or "label_prob" not in self.spec.columns:
            return self.spec.function(pairs, **self.hyper)
        if self.spec.smoothing:
            return self.spec.function(pairs, **{**self.hyper, "label_smoothing": 1 - pairs.label_prob})
        hyper = {name: 0.0 if name == "label_smoothing" else value for name, value in self.hyper.items()}
        right, wrong = self.spec.function(pairs, **hyper), self.spec.function(pairs.swapped(), **hyper)
        return pairs.label_prob * right + (1 - pairs.label_prob) * wrong

    def rewards(self, answers: Answers) -> Tensor:
        """Rewards of answers, as they are reported."""
        return self.spec.reward(answers, self.hyper)


class Loss:
    """A weighted sum of losses of one kind; mostly of one."""

    def __init__(self, terms: Mapping[str, tuple[float, Term]]) -> None:
        """
        Args:
            terms: weight and loss by name; rewards are reported as the first one's.
        """
        self.terms = dict(terms)
        self._first = next(iter(self.terms.values()))[1]
        self.kind: Kind = self._first.spec.kind

    @property
    def needs_reference(self) -> bool:
        """Whether any term does."""
        return any(term.needs_reference for _, term in self.terms.values())

    @property
    def needs_concentration(self) -> bool:
        """Whether the head must give log of the sum of squared probabilities."""
        return any(term.modifiers.wpo for _, term in self.terms.values())

    @property
    def needs_prompt(self) -> bool:
        """Whether the prompt's tokens must be predicted too."""
        return any(term.hyper.get("nll") == "full" for _, term in self.terms.values())

    def columns(self, over: str) -> int:
        """How many numbers of the global ``batch``, or of its ``mismatched`` answers, are needed of each; 0 = none."""
        needed = [term.spec.statistics for _, term in self.terms.values()]
        return sum(statistics.columns for statistics in needed if statistics is not None and statistics.over == over)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of a result's metrics."""
        return of_loss(self.terms)

    def gather(self, logps: AnswerLogps, preferences: Preferences, over: str) -> Tensor:
        """A micro-batch's numbers for statistics over the global batch: ``[n, columns]``, all terms' side by side."""
        logps = logps.detached()
        parts = [
            term.spec.statistics.gather(term.view(logps, preferences))
            for _, term in self.terms.values()
            if term.spec.statistics is not None and term.spec.statistics.over == over
        ]
        return torch.cat(parts, dim=1) if parts else logps.policy.new_zeros(len(preferences.rows), 0)

    def contexts(
        self, gathered: Mapping[str, Tensor], state: Mapping[str, State]
    ) -> tuple[dict[str, Any], dict[str, State]]:
        """What each term finds in the gathered numbers, and what it will remember."""
        contexts: dict[str, Any] = {}
        after: dict[str, State] = {}
        column = dict.fromkeys(gathered, 0)
        for name, (_, term) in self.terms.items():
            statistics = term.spec.statistics
            if statistics is None:
                continue
            numbers = gathered[statistics.over]
            start = column[statistics.over]
            column[statistics.over] = start + statistics.columns
            own = numbers[:, start : start + statistics.columns]
            contexts[name], after[name] = statistics.find(own, dict(state.get(name, {})), term.hyper)
        return contexts, after

    def __call__(
        self, logps: AnswerLogps, preferences: Preferences, contexts: Mapping[str, Any] | None = None
    ) -> Result:
        """A micro-batch's losses and metrics.

        Args:
            logps: of its answers.
            preferences: among them.
            contexts: by term, from ``contexts``; None where no term needs any.
        """
        total: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        weights = {"pairs": preferences.weights, "answers": preferences.label_weights}.get(
            self.kind, preferences.ranking_weights
        )
        for name, (weight, term) in self.terms.items():
            view = replace(term.view(logps, preferences), context=(contexts or {}).get(name))
            losses = weights * term.losses(view, logps, preferences)
            metrics[f"loss/{name}"] = losses.detach()
            total = weight * losses if total is None else total + weight * losses
        assert total is not None
        metrics |= {"loss": total.detach(), **self._rewards(logps.detached(), preferences)}
        return Result(total, {name: metrics[name] for name in self.metric_names})

    def answer_rewards(self, logps: AnswerLogps) -> Tensor:
        """``[A]``: every answer's reward on its own, in the first term's terms, whatever is preferred to what."""
        return self._first.rewards(answers_of(self._first.adjusted(logps.detached())))

    def _rewards(self, logps: AnswerLogps, preferences: Preferences) -> dict[str, Tensor]:
        """Rewards and log-probs of good and bad answers, in the first term's terms."""
        adjusted = self._first.adjusted(logps)
        pairs = pairs_of(adjusted, preferences, ld_alpha=self._first.modifiers.ld_alpha, score=reverse_kl)
        chosen, rejected = self._first.rewards(pairs.chosen), self._first.rewards(pairs.rejected)
        margins = chosen - rejected
        accurate = (margins > 0).double() + 0.5 * (margins == 0).double()  # half on a tie
        winners, losers = preferences.winners, preferences.losers
        if self.kind == "answers":  # some may have no opponent, and nothing to be accurate about
            judged = judged_of(adjusted, preferences)
            rewards, good = self._first.rewards(judged.answers), judged.good
            chosen, rejected = rewards[good], rewards[~good]
            winners, losers = preferences.labelled[good], preferences.labelled[~good]
        sums = logps.policy_sums  # of all tokens alike, whatever a modifier makes of them
        values = (chosen, rejected, accurate, margins, sums[winners], sums[losers])
        return dict(zip((*REWARDS, *LOGPS), values, strict=True))


def _wpo_weight(pairs: Pairs) -> Tensor:
    if pairs.chosen.concentration is None or pairs.rejected.concentration is None:
        raise ValueError("WPO needs the concentration of the policy's probabilities, and was given none")
    return torch.exp(pairs.chosen.concentration + pairs.rejected.concentration).clamp(max=1.0).detach()


_MODIFIERS = frozenset(Modifiers.__dataclass_fields__)


def make_loss(settings: Mapping[str, Any]) -> Loss:
    """The loss that ``loss.*`` of a configuration asks for: ``name``, hyperparameters and modifiers; for ``sum``
    ``terms`` and ``weights``."""
    if settings["name"] == "sum":
        terms = {name: (float(settings["weights"][name]), _term(term)) for name, term in settings["terms"].items()}
        return Loss(terms)
    return Loss({settings["name"]: (1.0, _term(settings))})


def _term(settings: Mapping[str, Any]) -> Term:
    given = {name: value for name, value in settings.items() if name != "name"}
    modifiers = Modifiers(**{name: value for name, value in given.items() if name in _MODIFIERS})
    hyper = {name: value for name, value in given.items() if name not in _MODIFIERS}
    return Term(LOSSES[settings["name"]], hyper, modifiers)
