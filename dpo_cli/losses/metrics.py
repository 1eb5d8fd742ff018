"""What is reported of comparisons, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpo_cli.losses.types import AnswerLogps, Preferences

# Sums over comparisons, in the order in which they travel between ranks.
NAMES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


class Sums:
    """Sums of metrics over comparisons; their means don't depend on how a batch was split."""

    def __init__(self) -> None:
        self.values = [0.0] * (len(NAMES) + 1)
        """One sum per name, and the number of comparisons."""

    def add(self, losses: Tensor, logps: AnswerLogps, chosen: Preferences, beta: float) -> float:
        """Take in a micro-batch's comparisons; returns the sum of their losses.

        Rewards are ``beta`` x log-ratio (Rafailov et al. 2023, section 4), log-probs are summed over the answer. A
        comparison counts as accurate when the chosen answer has the higher reward, and half on a tie.
        """
        with torch.no_grad():
            rewards = beta * logps.log_ratios
            margins = rewards[chosen.winners] - rewards[chosen.losers]
            per_comparison = (
                losses,
                rewards[chosen.winners],
                rewards[chosen.losers],
                (margins > 0).double() + 0.5 * (margins == 0).double(),
                margins,
                logps.policy_sums[chosen.winners],
                logps.policy_sums[chosen.losers],
            )
            # One trip to the host for all of them.
            sums = torch.stack([values.double().sum() for values in per_comparison]).tolist()
        for index, value in enumerate([*sums, float(len(losses))]):
            self.values[index] += value
        return float(sums[0])

    def means(self, over_ranks: Callable[[Sequence[float]], list[float]]) -> dict[str, float]:
        """Means over all ranks' comparisons, by metric name; ``over_ranks`` sums each value over them."""
        *totals, count = over_ranks(self.values)
        return {name: total / count for name, total in zip(NAMES, totals, strict=True)}
