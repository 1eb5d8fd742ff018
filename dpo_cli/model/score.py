"""Log-probs of whole answers without gradients: what the reference pass and evaluation need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.plan import pack
from dpo_cli.data.types import Group


def score(policy: Callable[[FlatBatch], Tensor], groups: Sequence[Group], *, share: bool) -> list[list[NDArray]]:
    """Token log-probs of each group's answers, all of them, scored or not.

    Args:
        policy: a ``Policy``, or an engine around one.
        groups: scored as one micro-batch.
        share: as the policy's ``groups``.

    Returns:
        For each group, for each answer, ``[A]`` float32.
    """
    batch = collate([replace(group, scored=()) for group in groups], share=share)
    with torch.no_grad():
        logps = policy(batch).float().cpu().numpy()[batch.answer_tokens]
    ends = np.cumsum([len(answer) for group in groups for answer in group.answers])
    parts = iter(np.split(logps, ends[:-1]))
    return [[next(parts) for _ in group.answers] for group in groups]


def score_all(
    policy: Callable[[FlatBatch], Tensor],
    groups: Sequence[Group],
    *,
    share: bool,
    lengths: Callable[[Group], int],
    token_budget: int,
) -> list[list[NDArray]]:
    """``score`` for any number of groups, in micro-batches of at most ``token_budget`` tokens; results in order."""
    found: dict[int, list[NDArray]] = {}
    for members in pack(range(len(groups)), [lengths(group) for group in groups], token_budget, padded=not share):
        found.update(zip(members, score(policy, [groups[index] for index in members], share=share), strict=True))
    return [found[index] for index in range(len(groups))]
