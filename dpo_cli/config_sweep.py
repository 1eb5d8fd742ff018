"""The type of ``sweep.*``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from dpo_cli.config_types import CountFromZero, PositiveInt, Section


class SweepConfig(Section):
    """How ``-m`` runs its points."""

    parallel: PositiveInt
    points: list[str]
    sampler: Literal["tpe", "random"] | None
    trials: PositiveInt
    metric: str | None
    direction: Literal["auto", "maximize", "minimize"]
    report: bool
    prune: bool
    warmup_trials: CountFromZero

    @property
    def goal(self) -> str:
        """What a smart sweep is after."""
        return self.metric or "eval/rewards/accuracies"


def sweep_conflicts(sweep: SweepConfig, *, eval_every: int | None) -> Iterator[str]:
    """What can't be, and what a smart sweep needs.

    Args:
        sweep: the section.
        eval_every: updates between two evaluations, if there are any.
    """
    if sweep.direction != "auto" and sweep.metric is None:
        yield f"sweep.direction={sweep.direction} has no effect without sweep.metric"
    if sweep.sampler is not None and sweep.prune and eval_every is None:
        yield "sweep.prune=true needs train.eval_every: a run is judged by its evaluations; or sweep.prune=false"
