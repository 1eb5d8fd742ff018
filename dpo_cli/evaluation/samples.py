"""Sampled answers, judged: by a known true reward where there is one, and by how far they drift from the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dpo_cli.data.types import Group, Tokens
from dpo_cli.distributed import from_first
from dpo_cli.evaluation.drift import sample_means
from dpo_cli.evaluation.generation import Answering, as_groups
from dpo_cli.evaluation.intervals import Bootstrap, Estimate
from dpo_cli.quickstart.task import true_reward as quickstart_reward

TRUE_REWARDS: dict[str, Callable[[str, str], float]] = {"quickstart": quickstart_reward}
"""Rewards of an answer to a question that are known, not learnt."""


@dataclass(frozen=True)
class Samples:
    """One answer to each of some prompts."""

    questions: list[str]
    answers: list[str]
    groups: list[Group]
    """The same as tokens, to be scored."""
    rewards: list[float] | None
    """True rewards."""

    @property
    def tokens(self) -> list[Tokens]:
        """The answers as token ids."""
        return [group.answers[0] for group in self.groups]

    def metrics(
        self, policy: Sequence[NDArray] | None, reference: Sequence[NDArray] | None, *, ends: Collection[int]
    ) -> dict[str, float]:
        """Their means, as ``samples/...``: the true reward, what ``drift.sample_means`` measures, and the KL's error.

        Args:
            policy: token log-probs of each answer under the model that gave it; None where it was not sampled at
                temperature 1.
            reference: the same under the reference; None = there is none, or it is the model itself.
            ends: tokens that end an answer.
        """
        found = sample_means(self.tokens, policy, reference, ends=ends)
        if self.rewards is not None:
            found["true_reward"] = float(np.mean(self.rewards))
        if policy is not None and reference is not None:
            found["kl_error"] = kl_error(policy, reference)
        return {f"samples/{name}": value for name, value in found.items()}

    def true_reward(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        """Their mean true reward with its interval; nothing where none is known."""
        if self.rewards is None:
            return {}
        columns = {"count": np.ones(len(self.rewards)), "true_reward": np.array(self.rewards, dtype=np.float64)}
        return bootstrap(
            columns,
            np.arange(len(self.rewards)),
            lambda sums: {"true_reward": sums["true_reward"] / sums["count"]},
        )

    def rows(self, step: int) -> list[dict[str, Any]]:
        """For ``samples.jsonl``."""
        rewards = self.rewards if self.rewards is not None else [None] * len(self.answers)
        return [
            {"step": step, "prompt": question, "answer": answer, **({} if reward is None else {"true_reward": reward})}
            for question, answer, reward in zip(self.questions, self.answers, rewards, strict=True)
        ]


def draw(
    answering: Answering,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    *,
    count: int,
    true_reward: str | None,
) -> Samples:
    """Answer the first ``count`` distinct prompts of ``groups``, and judge the answers by a true reward, if one is
    named."""
    chosen = distinct_prompts(groups)[:count]
    prompts: list[Tokens] = [group.prompt_ids for group in chosen]
    tokens = from_first(answering(prompts))  # ranks must go on with the same lengths, whatever their rounding
    questions = [group.question for group in chosen]
    answers = [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in tokens]
    reward = TRUE_REWARDS[true_reward] if true_reward else None
    rewards = None if reward is None else [reward(*pair) for pair in zip(questions, answers, strict=True)]
    return Samples(questions, answers, as_groups(prompts, tokens), rewards)


def distinct_prompts(groups: Sequence[Group]) -> list[Group]:
    """The first group of each prompt."""
    found: dict[bytes, Group] = {}
    for group in groups:
        found.setdefault(group.prompt_ids.tobytes(), group)
    return list(found.values())


def kl_error(policy: Sequence[NDArray], reference: Sequence[NDArray]) -> float:
    """Standard error of a KL, the mean of log pi(y|x) - log pi_ref(y|x) over samples y ~ pi, in nats per answer.

    Args:
        policy: token log-probs of each sample, as ``score`` gives them.
        reference: of the same samples, which must have been drawn at temperature 1: from the policy itself.
    """
    ratios = [float((mine.astype(np.float64) - theirs).sum()) for mine, theirs in zip(policy, reference, strict=True)]
    return float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
