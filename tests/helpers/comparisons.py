"""Comparisons with made-up numbers."""

from __future__ import annotations

import numpy as np

from dpo_cli.evaluation.scores import Comparisons


def made(count: int = 60, prompts: int = 40, seed: int = 0, *, skill: float = 0.5) -> Comparisons:
    """Rewards that are right more often than not, of answers of many lengths; some prompts have several comparisons."""
    pick = np.random.default_rng(seed)
    lengths = pick.integers(3, 40, (count, 2))
    lengths[::7, 1] = lengths[::7, 0]
    reference = -pick.gamma(4.0, 5.0, (count, 2))
    logps = reference + pick.normal(0, 2, (count, 2))
    rewards = logps - reference
    rewards[:, 0] += skill
    rewards[::11, 1] = rewards[::11, 0]  # ties
    return Comparisons(
        prompts=pick.integers(0, prompts, count),
        groups=np.arange(count),
        rewards=rewards,
        logps=logps,
        reference=reference,
        lengths=lengths,
        labelled=np.zeros(count),
    )
