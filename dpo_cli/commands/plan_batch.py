"""The batches that a run would make: from its rows where they have been read, else from assumed lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_cli.commands.rows import Rows
from dpo_cli.config import DataConfig, PlanSection, TrainSection
from dpo_cli.data.collate import FlatBatch, collate, flat_length
from dpo_cli.data.plan import MicroBatch, Plan, Step
from dpo_cli.data.types import Group, Kind, Pair
from dpo_cli.losses import Loss
from dpo_cli.model.flops import FlopsModel

_LOOKED_AT = 64
"""Updates whose micro-batches are made to find the largest."""
_LAID_OUT = 2
"""Groups of assumed lengths that are laid out; a micro-batch is taken to be as much larger as it has more tokens."""


@dataclass(frozen=True)
class Batches:
    """What an update is made of, and the whole run."""

    comparisons: int
    """Of all rows."""
    updates: int
    micro_batches: int
    """In an update, on each data rank; the most there are."""
    tokens: int
    """Of the largest micro-batch, all its processes together."""
    largest: FlatBatch
    """That micro-batch, or a smaller one like it."""
    share: float
    """How many times as many tokens the largest has."""
    rows: int
    """Positions of it that logits are made for."""
    update_flops: float
    """Necessary ones of all updates."""
    reference_flops: float
    """Of one pass over every row that is scored, held-out ones included."""
    answers: int
    """That are scored in it."""
    answer_tokens: int


@dataclass(frozen=True)
class Source:
    """Where batches come from."""

    train: TrainSection
    loss: Loss
    seed: int
    share: bool
    """Whether prompts are run once for all their answers."""
    update: FlopsModel
    forward: FlopsModel
    known: Rows | None
    typical: Group
    """A row of the assumed lengths."""
    longest: int
    """Tokens of the longest row that the assumed lengths allow."""
    count: int
    """Rows there are assumed to be."""

    @property
    def assumed(self) -> bool:
        """Whether lengths are assumed."""
        return self.known is None

    def batches(self, budget: int, ranks: int) -> Batches:
        """With so many tokens a micro-batch, on so many data ranks."""
        return self._assumed(budget, ranks) if self.known is None else self._real(self.known, budget, ranks)

    def _collate(self, groups: Sequence[Group]) -> FlatBatch:
        return collate(groups, share=self.share, predict_prompts=self.loss.needs_prompt)

    def _assumed(self, budget: int, ranks: int) -> Batches:
        group, train = self.typical, self.train
        length, counted = flat_length(group, share=self.share), group.count(self.loss.kind)
        per_update = math.ceil(train.batch_size / counted)
        on_rank = math.ceil(per_update / ranks)
        tokens = max(length, min(budget, on_rank * self.longest))
        together = max(1, min(on_rank, budget // length))
        batch = self._collate([group] * _LAID_OUT)
        share = tokens / len(batch.input_ids)
        updates = train.epochs * math.ceil(self.count / per_update)
        updates = updates if train.max_steps is None else min(updates, train.max_steps)
        seen = min(updates * per_update, train.epochs * self.count)
        return Batches(
            comparisons=self.count * counted,
            updates=updates,
            micro_batches=math.ceil(on_rank / together),
            tokens=tokens,
            largest=batch,
            share=share,
            rows=round(len(batch.rows) * share),
            update_flops=seen * self.update.forward(group),
            reference_flops=self.count * self.forward.forward(group),
            answers=self.count * len(group.answers),
            answer_tokens=self.count * sum(map(len, group.answers)),
        )

    def _real(self, rows: Rows, budget: int, ranks: int) -> Batches:
        groups, train = rows.data.train, self.train
        lengths = [flat_length(group, share=self.share) for group in groups]
        flops = [self.update.forward(group) for group in groups]
        counted = [group.count(self.loss.kind) for group in groups]
        plan = Plan(
            lengths,
            flops,
            counted,
            seed=self.seed,
            batch_size=train.batch_size,
            epochs=train.epochs,
            max_steps=train.max_steps,
            world_size=ranks,
            token_budget=budget,
            padded=not self.share,
        )
        steps = some_steps(plan)
        largest, micro_batches = largest_micro_batch(steps, lengths)
        batch = self._collate([groups[index] for index in largest])
        every = rows.all
        return Batches(
            comparisons=sum(counted),
            updates=len(plan),
            micro_batches=micro_batches,
            tokens=len(batch.input_ids),
            largest=batch,
            share=1.0,
            rows=len(batch.rows),
            update_flops=sum(sum(flops[index] for index in step.groups) for step in steps) / len(steps) * len(plan),
            reference_flops=sum(self.forward.forward(group) for group in every),
            answers=sum(len(group.answers) for group in every),
            answer_tokens=sum(len(answer) for group in every for answer in group.answers),
        )


def some_steps(plan: Plan) -> list[Step]:
    """Updates of a run, from the first to the last, by which to judge all: each takes a while to be made."""
    return [plan[index] for index in sorted({round(at) for at in np.linspace(0, len(plan) - 1, _LOOKED_AT)})]


def largest_micro_batch(steps: Sequence[Step], lengths: Sequence[int]) -> tuple[MicroBatch, int]:
    """The largest micro-batch of some updates, and the most that one of these has on each rank.

    Args:
        steps: the updates.
        lengths: tokens of each group.
    """
    ranks = [rank for step in steps for rank in step.ranks]
    every = [micro for rank in ranks for micro in rank if micro]
    largest = max(every, key=lambda micro: (sum(lengths[index] for index in micro), micro))
    return largest, max(map(len, ranks))


def assumed_group(plan: PlanSection, data: DataConfig, kind: Kind) -> tuple[Group, int]:
    """A row of the lengths that the configuration assumes, and the tokens of the longest that ``data`` lets through."""
    most = data.max_prompt_length or data.max_length - 1
    prompt = min(plan.prompt_tokens, most, data.max_length - 1)
    answer = min(plan.answer_tokens, data.max_length - prompt)
    answers = 4 if kind == "rankings" else 2
    # No two begin alike, so that they share the prompt alone.
    tokens = [np.concatenate(([number], np.zeros(answer - 1))).astype(np.int32) for number in range(answers)]
    said = {
        "pairs": {"pairs": (Pair(0, 1),)},
        "answers": {"pairs": (), "labels": (True, False)},
        "rankings": {"pairs": (), "ranks": tuple(range(answers))},
    }[kind]
    group = Group(np.zeros(prompt, dtype=np.int32), tuple(tokens), source="assumed", **said)  # type: ignore[arg-type]
    return group, prompt + answers * (data.max_length - prompt)
