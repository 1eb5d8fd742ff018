"""What a loss is given: the log-probs of the answers, and what is preferred to what.

All log-probs are in nats and float32 (or float64 where the model is).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class AnswerLogps:
    """Log-probs of every token of every answer of a batch, under the policy and under the reference.

    An answer's tokens lie together and in order; a token that several answers of a group share was computed once
    and stands here once per answer, so that nothing below needs to know about sharing.
    """

    policy: Tensor
    """``[M]``, differentiable."""
    reference: Tensor | None
    """``[M]``, or None where the loss needs no reference."""
    answer: Tensor
    """``[M]`` int64: the answer each token belongs to."""
    count: int
    """A, the number of answers."""

    @classmethod
    def of(cls, policy: Tensor, reference: Tensor | None, answer_tokens: NDArray, answer: NDArray) -> AnswerLogps:
        """From what a model gives.

        Args:
            policy: ``[N]``, each predicted token once.
            reference: ``[M]``
            answer_tokens: ``[M]``: for each token of each answer, its index in ``[N]``.
            answer: ``[M]``
        """
        device = policy.device
        return cls(
            policy=policy[torch.from_numpy(answer_tokens).to(device)],
            reference=None if reference is None else reference.to(device),
            answer=torch.from_numpy(answer).to(device),
            count=int(answer[-1]) + 1,
        )

    @cached_property
    def lengths(self) -> Tensor:
        """``[A]``: tokens per answer, end-of-turn included."""
        return torch.bincount(self.answer, minlength=self.count)

    @cached_property
    def policy_sums(self) -> Tensor:
        """``[A]``: log pi(answer | prompt)."""
        return self.per_answer(self.policy)

    @cached_property
    def reference_sums(self) -> Tensor:
        """``[A]``: log pi_ref(answer | prompt)."""
        return self.per_answer(self._reference())

    @cached_property
    def log_ratios(self) -> Tensor:
        """``[A]``: log pi(answer | prompt) - log pi_ref(answer | prompt).

        Summed over the differences of the tokens, not the difference of two sums of hundreds of nats: float32
        keeps some two digits more that way.
        """
        return self.per_answer(self.policy - self._reference())

    def per_answer(self, values: Tensor) -> Tensor:
        """Sums of ``values`` ``[M]`` over each answer's tokens: ``[A]``."""
        return values.new_zeros(self.count).index_add(0, self.answer, values)

    def _reference(self) -> Tensor:
        if self.reference is None:
            raise ValueError("this loss needs reference log-probs, and was given none")
        return self.reference


@dataclass(frozen=True)
class Preferences:
    """B comparisons between answers of a batch, by answer index."""

    winners: Tensor
    """``[B]`` int64."""
    losers: Tensor
    """``[B]`` int64."""

    @classmethod
    def of(cls, winners: NDArray, losers: NDArray, device: torch.device) -> Preferences:
        """From answer indices as arrays."""
        return cls(torch.from_numpy(winners).to(device), torch.from_numpy(losers).to(device))
