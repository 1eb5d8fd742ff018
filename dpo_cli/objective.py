"""What is minimised and on what: from groups through the policy and the reference to losses, one micro-batch at a time.

Training, evaluation and the checks at the start all look at a micro-batch through this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dpo_cli.data.collate import FlatBatch, collate
from dpo_cli.data.types import Group
from dpo_cli.distributed import device, summed
from dpo_cli.losses import AnswerLogps, Loss, Preferences, count_of
from dpo_cli.transfer import on_device

Policy = Callable[..., Any]
"""A ``Policy``, or an engine around one."""
Reference = Callable[[FlatBatch], Tensor]
"""Gives the reference log-probs ``[M]`` of a batch."""
LossState = dict[str, dict[str, float]]
"""What a loss remembers from update to update, by term."""


@dataclass(frozen=True)
class Objective:
    """A loss on groups."""

    groups: Sequence[Group]
    """Indexed by micro-batches."""
    loss: Loss
    reference: Reference | None
    """None where the loss needs none."""
    share: bool
    """Whether the policy takes groups with shared prompts."""
    mismatched: Sequence[Group] = ()
    """For each group its prompt with an answer to another one; empty where the loss needs none."""

    def count(self, index: int) -> int:
        """Comparisons, judged answers or rankings of a group."""
        return self.groups[index].count(self.loss.kind)

    def look(self, policy: Policy, groups: Sequence[Group]) -> tuple[FlatBatch, AnswerLogps]:
        """Log-probs of the groups' answers, with gradient unless it is switched off."""
        batch = collate(groups, share=self.share, predict_prompts=self.loss.needs_prompt)
        output = policy(batch, True) if self.loss.needs_concentration else policy(batch)
        reference = None if self.reference is None else self.reference(batch)
        return batch, answer_logps(output, reference, batch, prompts=self.loss.needs_prompt)

    def preferences(self, batch: FlatBatch, logps: AnswerLogps, rows: Sequence[int]) -> Preferences:
        """The batch's preferences; ``rows``: places of its comparisons in the global batch."""
        arrays = {**batch.preferences, "rows": np.array(rows, dtype=np.int64)}
        return Preferences.of(arrays, device(), logps.policy.dtype)

    def contexts(
        self, policy: Policy, micro_batches: Sequence[Sequence[int]], order: Sequence[int], state: LossState
    ) -> tuple[dict[str, Any], LossState]:
        """What the loss must know of the whole global batch, found by scoring it once without gradient.

        All ranks must call it with as many micro-batches each. Nothing is scored for a loss that needs nothing.

        Args:
            policy: to score with.
            micro_batches: of this rank; an empty one is a filler.
            order: the groups of the global batch.
            state: the loss's.

        Returns:
            The contexts, and the loss's state after this batch.
        """
        gathered: dict[str, Tensor] = {}
        if self.loss.columns("batch"):
            rows = rows_of(order, self.count)
            gathered["batch"] = self._gather("batch", policy, micro_batches, order, rows)
        if self.loss.columns("mismatched"):
            rows = {group: [place] for place, group in enumerate(order)}
            gathered["mismatched"] = self._gather("mismatched", policy, micro_batches, order, rows)
        return self.loss.contexts(gathered, state)

    def _gather(
        self,
        over: Literal["batch", "mismatched"],
        policy: Policy,
        micro_batches: Sequence[Sequence[int]],
        order: Sequence[int],
        rows: Mapping[int, list[int]],
    ) -> Tensor:
        groups = self.groups if over == "batch" else self.mismatched
        total = sum(len(places) for places in rows.values())
        numbers = torch.zeros(total, self.loss.columns(over), dtype=torch.float64, device=device())
        for members in micro_batches:
            with torch.no_grad():
                batch, logps = self.look(policy, [groups[index] for index in members or order[:1]])
            if members:
                places = [row for index in members for row in rows[index]]
                numbers[places] = self.loss.gather(logps, self.preferences(batch, logps, places), over).double()
        return summed(numbers)


def rows_of(order: Sequence[int], count: Callable[[int], int]) -> dict[int, list[int]]:
    """Where each group's comparisons stand among those of the global batch, which follow the groups' order."""
    counts = [count(index) for index in order]
    ends = accumulate(counts)
    return {index: list(range(end - size, end)) for index, size, end in zip(order, counts, ends, strict=True)}


def answer_logps(
    output: Tensor | tuple[Tensor, Tensor], reference: Tensor | None, batch: FlatBatch, *, prompts: bool = False
) -> AnswerLogps:
    """From predicted tokens, each once, to the tokens of each answer.

    Args:
        output: the policy's, ``[N]`` or two such.
        reference: ``[M]``, or None.
        batch: says which token belongs to which answers.
        prompts: whether the prompts' tokens were predicted too; a prompt of one token has none.
    """
    predicted, concentration = output if isinstance(output, tuple) else (output, None)
    where = predicted.device
    tokens = on_device(batch.answer_tokens, where)
    count = int(batch.answer[-1]) + 1
    prompt = prompt_lengths = None
    if prompts:
        owner = on_device(batch.prompt_answer, where)
        of_prompts = predicted[on_device(batch.prompt_tokens, where)]
        prompt = of_prompts.new_zeros(count).index_add(0, owner, of_prompts)
        prompt_lengths = count_of(owner, count)
    return AnswerLogps(
        policy=predicted[tokens],
        reference=None if reference is None else on_device(reference, where),
        answer=on_device(batch.answer, where),
        count=count,
        concentration=None if concentration is None else predicted.detach()[tokens] - concentration[tokens],
        prompt=prompt,
        prompt_lengths=prompt_lengths,
    )
