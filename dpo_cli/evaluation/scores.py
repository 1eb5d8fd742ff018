"""What a model says of held-out rows, answer by answer and comparison by comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpo_cli.data.collate import masks
from dpo_cli.data.types import Group
from dpo_cli.distributed import device, summed
from dpo_cli.losses import AnswerLogps, Loss


@dataclass(frozen=True)
class Comparisons:
    """C comparisons of a chosen answer, column 0, with a rejected one, column 1."""

    prompts: NDArray
    """``[C]`` int: comparisons of one prompt have one number."""
    groups: NDArray
    """``[C]`` int: the group each stands in."""
    rewards: NDArray
    """``[C, 2]`` implicit rewards, as the loss has them."""
    logps: NDArray
    """``[C, 2]`` the policy's log-probs in nats, summed over scored tokens."""
    reference: NDArray | None
    """``[C, 2]`` the reference's; None = there is none."""
    lengths: NDArray
    """``[C, 2]`` scored tokens."""
    labelled: NDArray
    """``[C]`` by how much the chosen answer is said to be better; 0 where nobody said."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def margins(self) -> NDArray:
        """``[C]``: the chosen answer's reward less the rejected one's."""
        margins: NDArray = self.rewards[:, 0] - self.rewards[:, 1]
        return margins

    def select(self, rows: NDArray) -> Comparisons:
        """Some of them, by index or mask."""
        return Comparisons(
            self.prompts[rows],
            self.groups[rows],
            self.rewards[rows],
            self.logps[rows],
            None if self.reference is None else self.reference[rows],
            self.lengths[rows],
            self.labelled[rows],
        )


class Scores:
    """Numbers of all answers of some groups, filled in a micro-batch at a time, over ranks."""

    _COLUMNS = ("reward", "policy", "reference")

    def __init__(self, groups: Sequence[Group], *, reference: bool) -> None:
        """
        Args:
            groups: all of them, on every rank.
            reference: whether there is one.
        """
        self.groups = groups
        self._has_reference = reference
        sizes = [len(group.answers) for group in groups]
        self._starts = [0, *accumulate(sizes)]
        self._pair_starts = [0, *accumulate(len(group.pairs) for group in groups)]
        self._answers = torch.zeros(self._starts[-1], 3, dtype=torch.float64, device=device())
        self._pairs = torch.zeros(self._pair_starts[-1], 2, dtype=torch.float64, device=device())

    def add(self, members: Sequence[int], logps: AnswerLogps, loss: Loss, pair_rewards: Sequence[Tensor]) -> None:
        """Take in a micro-batch.

        Args:
            members: the indices of its groups.
            logps: of its answers.
            loss: knows what an answer's reward is.
            pair_rewards: of its comparisons' chosen and rejected answers, ``[B]`` each, where the loss gave them: an
                opponent's length may matter. Empty: the answers' own.
        """
        rewards = loss.answer_rewards(logps).double()
        places = [place for index in members for place in range(self._starts[index], self._starts[index + 1])]
        # In float64: these are sums of hundreds of numbers, of which differences are taken.
        self._answers[places, 0] = rewards
        self._answers[places, 1] = logps.per_answer(logps.policy.double())
        if self._has_reference and logps.reference is not None:
            self._answers[places, 2] = logps.per_answer(logps.reference.double())
        rows = [row for index in members for row in range(self._pair_starts[index], self._pair_starts[index + 1])]
        if not rows:
            return
        if pair_rewards:
            self._pairs[rows] = torch.stack([side.double() for side in pair_rewards], dim=1)
            return
        first = 0
        values = []
        for index in members:
            group = self.groups[index]
            values += [rewards[[first + pair.winner, first + pair.loser]] for pair in group.pairs]
            first += len(group.answers)
        self._pairs[rows] = torch.stack(values)

    def gather(self) -> None:
        """Bring together what the ranks have; all must call it, once."""
        summed(self._answers)
        summed(self._pairs)

    def rewards(self) -> list[NDArray]:
        """For each group ``[K]``: its answers' rewards."""
        return np.split(self._answers[:, 0].cpu().numpy(), self._starts[1:-1])

    def comparisons(self) -> Comparisons:
        """All comparisons of the groups, in their order."""
        numbers = self._answers.cpu().numpy()
        pairs = [
            (number, start + pair.winner, start + pair.loser, pair.margin)
            for number, (group, start) in enumerate(zip(self.groups, self._starts, strict=False))
            for pair in group.pairs
        ]
        table = np.array(pairs, dtype=np.float64).reshape(-1, 4)
        groups, sides = table[:, 0].astype(np.int64), table[:, 1:3].astype(np.int64)
        lengths = np.array([int(mask.sum()) for group in self.groups for mask in masks(group)], dtype=np.int64)
        numbered: dict[bytes, int] = {}
        prompts = [numbered.setdefault(group.prompt_ids.tobytes(), len(numbered)) for group in self.groups]
        return Comparisons(
            prompts=np.array(prompts, dtype=np.int64)[groups],
            groups=groups,
            rewards=self._pairs.cpu().numpy(),
            logps=numbers[:, 1][sides],
            reference=numbers[:, 2][sides] if self._has_reference else None,
            lengths=lengths[sides],
            labelled=table[:, 3],
        )
