"""The training loop: updates, and once in a while metrics, an evaluation, a checkpoint."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from dpo_cli import faults, liveness
from dpo_cli.data.plan import Plan
from dpo_cli.distributed import device, largest, sums, world_size
from dpo_cli.engine.engine import Engine
from dpo_cli.losses import Sums
from dpo_cli.objective import LossState, Objective
from dpo_cli.training.step import Update, train_step


@dataclass(frozen=True)
class Rhythm:
    """How many updates lie between two of each; None = none but those the loop always makes."""

    log: int
    evaluate: int | None
    sample: int | None
    save: int | None


@dataclass(frozen=True)
class Work:
    """What each group costs, for the speed metrics."""

    tokens: list[int]
    """Run through the model."""
    flops: list[float]
    """Necessary floating-point operations of forward and backward."""
    peak: float | None
    """What one rank's device can do per second; None = unknown."""


class Hooks(Protocol):
    """What the loop calls, on all ranks."""

    def updating(self, index: int) -> AbstractContextManager[None]: ...

    def updated(self, step: int, update: Update) -> None: ...

    def passed_over(self, step: int, problem: str) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def evaluate(self, step: int) -> None: ...

    def sample(self, step: int) -> object: ...

    def is_enough(self, step: int) -> bool: ...

    def save(self, step: int) -> None: ...

    def honour_stop(self, step: int) -> None: ...


@dataclass
class Window:
    """What happened since the last line of metrics."""

    sums: Sums
    seconds: float = 0.0
    pairs: int = 0
    tokens: int = 0
    flops: float = 0.0

    def clear(self) -> None:
        """Begin anew."""
        self.sums = Sums(self.sums.names)
        self.seconds, self.pairs, self.tokens, self.flops = 0.0, 0, 0, 0.0


def fit(
    engine: Engine,
    plan: Plan,
    objective: Objective,
    rate: Callable[[int], float],
    hooks: Hooks,
    *,
    start: int,
    rhythm: Rhythm,
    work: Work,
    window: Window,
    state: LossState,
    passed_over: Sequence[int],
) -> int:
    """Run the plan's updates from ``start`` on; returns how many have been done in all. All ranks must call it.

    Updates are counted by their place in the plan. One that can't be made, as its numbers are not finite, is passed
    over, as the hooks note in ``passed_over``: weights, moments and the schedule are then as if the plan did not have
    it.

    A run ends early where the hooks say that it is enough. The state after update n is the same whether the run was
    stopped before or not: everything an update depends on is the plan, the weights and moments, what the loss
    remembers, and a reference that moves.

    Args:
        engine: around the policy.
        plan: every update of the run.
        objective: the loss and the rows.
        rate: learning rate of an update, by the number of updates made before it.
        hooks: for what happens between updates.
        start: updates already done.
        rhythm: when the hooks are called. Nothing is evaluated or saved after the last update: what follows the
            loop does that.
        work: costs, for the speed metrics.
        window: what happened since the last line of metrics, kept up to date for checkpoints: a line is the same
            whether the run was stopped before it or not.
        state: what the loss remembers of the updates before ``start``.
        passed_over: the updates before ``start`` that were not made, kept up to date by the hooks.

    Raises:
        Preempted: from the hooks, if a stop was requested; the state was saved.
        RolledBack: from the hooks, if the run is to go on from another state.
        NumericsError: if the numbers went bad.
    """
    progress: dict[str, float] = {}
    for index in range(start, len(plan)):
        if hooks.is_enough(index):
            if window.seconds:
                _log(hooks, index, progress, window, work)
            return index
        step, lr = plan[index], rate(index - len(passed_over))
        faults.reached("update", index + 1)
        began = time.perf_counter()
        with hooks.updating(index), liveness.once_more("update"):
            update = train_step(engine, step, objective, lr, window.sums, state)
        state = update.state
        window.seconds += time.perf_counter() - began
        window.pairs += step.comparisons
        window.tokens += sum(work.tokens[group] for group in step.groups)
        window.flops += sum(work.flops[group] for group in step.groups)
        done = index + 1
        last = done == len(plan)
        progress["epoch"] = step.epoch
        if update.problem is None:
            progress |= {"grad_norm": update.norm, "lr": lr}
            hooks.updated(done, update)
        else:
            hooks.passed_over(done, update.problem)
        if passed_over:
            progress["passed_over"] = len(passed_over)
        if done % rhythm.log == 0 or last:
            _log(hooks, done, progress, window, work)
        if rhythm.evaluate and done % rhythm.evaluate == 0 and not last:
            hooks.evaluate(done)
        if rhythm.sample and done % rhythm.sample == 0 and not last:
            hooks.sample(done)
        if rhythm.save and done % rhythm.save == 0 and not last and update.problem is None:
            hooks.save(done)  # but not of what may be spoilt: a checkpoint is to be one to go back to
        hooks.honour_stop(done)
    return len(plan)


def _log(hooks: Hooks, step: int, progress: dict[str, float], window: Window, work: Work) -> None:
    """A line about what happened since the last one."""
    hooks.log(step, {**window.sums.means(sums), **progress, **_speed(window, work), **memory()})
    window.clear()
    progress.clear()


def memory() -> dict[str, float]:
    """Peak memory so far in GiB, the largest of all ranks: of the process, and of the GPU where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    peaks = {"memory/rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device().type == "cuda":
        peaks["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return dict(zip(peaks, largest(list(peaks.values())), strict=True))


def _speed(window: Window, work: Work) -> dict[str, float]:
    seconds = max(window.seconds, 1e-9)
    metrics = {"pairs_per_second": window.pairs / seconds, "tokens_per_second": window.tokens / seconds}
    if work.peak is not None:
        metrics["mfu"] = window.flops / (seconds * work.peak * world_size())
    return metrics
