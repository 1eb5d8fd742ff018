"""Before anything is trained: do groups give this model's own numbers, and how much do numbers wobble?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dpo_cli.data.collate import collate
from dpo_cli.data.types import Group
from dpo_cli.model.attention import GROUP_ATTENTION, Segments, own_attention
from dpo_cli.model.policy import Policy, run_row
from dpo_cli.model.score import score
from dpo_cli.model.sequence_parallel import own_share

# Largest allowed difference of one token's log-prob between groups and plain sequences, in nats: far above
# rounding (1e-5; 0.1 in bfloat16), far below what a wrong mask does.
_TOLERANCE = {"fp32": 5e-3, "bf16": 1.0}


@dataclass(frozen=True)
class Agreement:
    """What the probe found."""

    difference: float
    """Largest difference of a token's log-prob between groups and plain sequences, in nats."""
    right: bool
    layers_missed: bool
    """Whether some attention layers never came to our function."""
    kernels: tuple[str, ...]
    """What the layers went through."""
    fallbacks: tuple[str, ...]
    """Why layers on a GPU did not go through a variable-length kernel."""


def choose(groups: Sequence[Group], window: int | None) -> list[Group]:
    """A few groups to probe with: short ones for speed, one long enough to pass a sliding window."""
    by_length = sorted(groups, key=lambda g: len(g.prompt_ids) + max(len(answer) for answer in g.answers))
    chosen = by_length[: max(1, len(by_length) // 4)][-3:]
    if window is not None:
        chosen += [g for g in by_length if len(g.prompt_ids) + max(map(len, g.answers)) > window][:1]
    return chosen


def compare(
    model: PreTrainedModel, groups: Sequence[Group], precision: str, *, share: bool = True, spread: bool = False
) -> Agreement:
    """Score a few groups through ``group_attention`` and through the model's own attention.

    Args:
        model: with ``group_attention``.
        groups: to be scored.
        precision: ``fp32`` or ``bf16``.
        share: whether prompts are run once for all their answers.
        spread: whether the processes of a sequence group share each row; all of them must then call it.
    """
    batch = collate(groups, share=share)
    segments = Segments(batch.layouts, model.device, spread=spread)
    own = own_share(batch)[0] if spread else batch
    with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        run_row(model, own, own.rows[:1], segments)
    went = (tuple(sorted(segments.kernels)), tuple(sorted(segments.fallbacks)))
    if segments.calls != model.config.get_text_config().num_hidden_layers:
        return Agreement(float("nan"), False, True, *went)
    in_groups = score(Policy(model, precision=precision, groups=share, spread=spread), groups, share=share)
    model.set_attn_implementation(own_attention(model))
    try:
        plain = score(Policy(model, precision=precision, groups=False), groups, share=False)
    finally:
        model.set_attn_implementation(GROUP_ATTENTION)
    difference = max(
        float(np.abs(left - right).max())
        for one, other in zip(in_groups, plain, strict=True)
        for left, right in zip(one, other, strict=True)
    )
    return Agreement(difference, difference <= _TOLERANCE[precision], False, *went)
