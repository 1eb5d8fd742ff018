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
    prune: bool
    warmup_trials: CountFromZero

    @property
    def goal(self) -> str:
        """What a smart sweep is after."""
        return self.metric or "eval/rewards/accuracies"


def sweep_conflicts(sweep: SweepConfig, *, eval_every: int | None, held_out: bool) -> Iterator[str]:
    """What a smart sweep needs.

    Args:
        sweep: the section.
        eval_every: updates between two evaluations, if there are any.
        held_out: whether there are rows to evaluate on.
    """
    if sweep.sampler is None:
        return
    if sweep.goal.startswith("eval/") and not held_out:
        yield f"sweep.metric={sweep.goal} needs held-out rows: give data.eval"
    if sweep.prune and eval_every is None:
        yield "sweep.prune=true needs train.eval_every: a run is judged by its evaluations; or sweep.prune=false"
