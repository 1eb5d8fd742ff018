"""What a loss is made from: the log-probs of the answers, and what is preferred to what.

All log-probs are in nats and float32 (or float64 where the model is).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from numpy.typing import NDArray
from torch import Tensor

from dpo_cli.transfer import on_device


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
    concentration: Tensor | None = None
    """``[M]``: log pi of the token less the log of the sum over the vocabulary of pi squared, where a loss asks for it;
    without gradient."""
    prompt: Tensor | None = None
    """``[A]``: log-prob of the answer's prompt, its first token aside, summed; where a loss asks for it."""
    prompt_lengths: Tensor | None = None
    """``[A]``: the tokens in ``prompt``."""

    @cached_property
    def lengths(self) -> Tensor:
        """``[A]``: tokens per answer, end-of-turn included."""
        return count_of(self.answer, self.count)

    @cached_property
    def starts(self) -> Tensor:
        """``[A]``: where each answer's tokens begin."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @cached_property
    def policy_sums(self) -> Tensor:
        """``[A]``: log pi(answer | prompt)."""
        return self.per_answer(self.policy)

    @cached_property
    def token_ratios(self) -> Tensor:
        """``[M]``: log pi - log pi_ref of each token."""
        return self.policy - self._reference()

    @cached_property
    def log_ratios(self) -> Tensor:
        """``[A]``: log pi(answer | prompt) - log pi_ref(answer | prompt).

        Summed over the differences of the tokens, not the difference of two sums of hundreds of nats: float32
        keeps some two digits more that way.
        """
        return self.per_answer(self.token_ratios)

    def per_answer(self, values: Tensor) -> Tensor:
        """Sums of ``values`` ``[M]`` over each answer's tokens: ``[A]``."""
        return values.new_zeros(self.count).index_add(0, self.answer, values)

    def detached(self) -> AnswerLogps:
        """The same numbers without gradient; its sums are its own, as those here must keep theirs."""
        return replace(self, policy=self.policy.detach())

    def with_reference(self, reference: Tensor) -> AnswerLogps:
        """The same answers under another reference ``[M]``."""
        return replace(self, reference=reference)

    def clamped(self, low: float, high: float) -> AnswerLogps:
        """With every token's log-ratio held inside [low, high]; outside, its gradient is 0."""
        reference = self._reference()
        return replace(self, policy=reference + self.token_ratios.clamp(low, high))

    def _reference(self) -> Tensor:
        if self.reference is None:
            raise ValueError("this loss needs reference log-probs, and was given none")
        return self.reference


@dataclass(frozen=True)
class Preferences:
    """What is preferred in a batch, by answer index. A loss reads the kind it is made for; others may be empty."""

    winners: Tensor
    """``[B]`` int64: of comparisons."""
    losers: Tensor
    """``[B]``"""
    weights: Tensor
    """``[B]``: how much each comparison counts."""
    margins: Tensor
    """``[B]``: by how much the winner should win, in reward units."""
    label_probs: Tensor | None
    """``[B]``: the probability that the winner is the better one; None = the loss's own smoothing."""
    labelled: Tensor
    """``[U]`` int64: the answers that are judged on their own."""
    labels: Tensor
    """``[U]`` bool: whether they are good."""
    label_weights: Tensor
    """``[U]``"""
    ranked: Tensor
    """``[Q]`` int64: the answers of all rankings, those of one ranking together."""
    ranks: Tensor
    """``[Q]`` int64: place in the ranking, 0 = best; equal places are not compared."""
    ranking: Tensor
    """``[Q]`` int64: the ranking each stands in."""
    ranking_weights: Tensor
    """``[R]``"""
    rows: Tensor
    """``[B]``, ``[U]`` or ``[R]`` int64: each comparison's place among those of the global batch."""

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray | None], device: torch.device, dtype: torch.dtype) -> Preferences:
        """From arrays of these names; what counts is given the log-probs' number format."""

        def tensor(array: NDArray | None) -> Tensor | None:
            if array is None:
                return None
            there = on_device(array, device)
            return there.to(dtype) if there.is_floating_point() else there

        return cls(**{name: tensor(array) for name, array in arrays.items()})  # type: ignore[arg-type]


def count_of(owner: Tensor, count: int) -> Tensor:
    """How many entries of ``owner`` ``[M]`` are 0, 1, ... ``count`` - 1: int64.

    ``torch.bincount`` does the same, but on a GPU it makes the host wait.
    """
    return owner.new_zeros(count).index_add(0, owner, torch.ones_like(owner))
