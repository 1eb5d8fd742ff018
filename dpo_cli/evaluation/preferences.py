"""Held-out preferences: the loss, rewards and accuracy on pairs that are not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.plan import share_out
from dpo_cli.data.types import Group
from dpo_cli.distributed import device, rank, sums, world_size
from dpo_cli.losses import AnswerLogps, Loss, Preferences, Sums


def evaluate_preferences(
    policy: Callable[[FlatBatch], Tensor],
    groups: Sequence[Group],
    loss: Loss,
    reference: Callable[[FlatBatch], Tensor],
    *,
    beta: float,
    share: bool,
    lengths: Sequence[int],
    token_budget: int,
    advance: Callable[[int], None] = lambda groups: None,
) -> dict[str, float]:
    """Means over all comparisons of ``groups``. All ranks must call it.

    Args:
        policy: gives ``[N]`` log-probs of a batch.
        groups: all of them, on every rank.
        loss: as in training.
        reference: gives ``[M]`` reference log-probs of a batch.
        beta: of the rewards.
        share: whether the policy takes groups with shared prompts.
        lengths: tokens each group takes in a micro-batch.
        token_budget: per micro-batch.
        advance: told how many groups this rank has done since the last time.
    """
    ranks = share_out(range(len(groups)), lengths, lengths, world_size(), token_budget, padded=not share)
    totals = Sums()
    for members in ranks[rank()]:
        # A filler is run like any other, as under ZeRO 3 every rank must take part; it counts nothing.
        batch = collate([groups[index] for index in members or (0,)], share=share)
        with torch.no_grad():
            logps = AnswerLogps.of(policy(batch), reference(batch), batch.answer_tokens, batch.answer)
        if members:
            chosen = Preferences.of(batch.winners, batch.losers, device())
            totals.add(loss(logps, chosen), logps, chosen, beta)
            advance(len(members) * world_size())  # the other ranks do about as many
    return totals.means(sums)
