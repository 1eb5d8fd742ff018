"""Which curves a report has, and the frontier of reward against KL: numbers alone, for a page or for pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpo_cli.reporting.compare import true_rewards
from dpo_cli.reporting.curves import Curve, columns_for, thin
from dpo_cli.reporting.runs import Run, Series, inside


@dataclass(frozen=True)
class Chart:
    """What is drawn into one pair of axes."""

    name: str
    title: str
    lines: tuple[tuple[str, str, str], ...]
    """Metric, what the line is called, and its style: ``line`` or ``points``."""
    absent: str
    """What brings it about, where no run has it; empty = it is not missed."""


def _both(name: str) -> tuple[tuple[str, str, str], ...]:
    return ((name, "training", "line"), (f"eval/{name}", "held out", "points"))


_HELD_OUT = "train.log_every logs it"
_SAMPLES = "eval.samples measures it"
CHARTS = (
    Chart("loss", "Loss", _both("loss"), _HELD_OUT),
    Chart("accuracy", "Reward accuracy", _both("rewards/accuracies"), _HELD_OUT),
    Chart("margin", "Reward margin", _both("rewards/margins"), _HELD_OUT),
    Chart("logps-chosen", "Log-prob of chosen answers, nats", _both("logps/chosen"), _HELD_OUT),
    Chart("logps-rejected", "Log-prob of rejected answers, nats", _both("logps/rejected"), _HELD_OUT),
    Chart("rewards-chosen", "Implicit reward of chosen answers", _both("rewards/chosen"), ""),
    Chart("rewards-rejected", "Implicit reward of rejected answers", _both("rewards/rejected"), ""),
    Chart(
        "kl",
        "KL to the reference, nats per answer",
        (("samples/kl", "sampled", "points"),),
        "eval.samples with eval.temperature=1 measures it",
    ),
    Chart("reward", "True reward of sampled answers", (("samples/true_reward", "sampled", "points"),), ""),
    Chart("length", "Tokens per sampled answer", (("samples/length", "sampled", "points"),), _SAMPLES),
    Chart("entropy", "Entropy of sampled answers, nats per token", (("samples/entropy", "sampled", "points"),), ""),
    Chart("repetition", "Share of repeated 4-grams in samples", (("samples/repetition", "sampled", "points"),), ""),
    Chart("grad-norm", "Gradient norm", (("grad_norm", "training", "line"),), ""),
    Chart("lr", "Learning rate", (("lr", "training", "line"),), ""),
    Chart("speed", "Pairs per second", (("pairs_per_second", "training", "line"),), _HELD_OUT),
    Chart("tokens", "Tokens per second", (("tokens_per_second", "training", "line"),), ""),
    Chart("mfu", "Model FLOPs utilisation", (("mfu", "training", "line"),), ""),
    Chart(
        "memory",
        "Peak memory, GiB",
        (("memory/rss_gib", "process", "line"), ("memory/gpu_gib", "GPU", "dashed")),
        _HELD_OUT,
    ),
)
_TOGETHER = {"logps": "Log-probs of answers, nats", "rewards": "Implicit rewards of answers"}
"""Where there is one run, chosen and rejected answers are in one chart."""
_NOT_DRAWN = {"epoch", "samples/kl_error"}


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    run: int
    label: str
    style: str
    curve: Curve


@dataclass(frozen=True)
class Drawn:
    """A chart with its lines."""

    chart: Chart
    lines: tuple[Line, ...]
    known: bool
    """False for a metric that has no chart of its own here."""


def charts(runs: Sequence[Run]) -> tuple[list[Drawn], list[Chart]]:
    """All charts that have something in them, and those that are missed."""
    wanted = list(CHARTS) if len(runs) > 1 else list(_of_one_run())
    own = len(wanted)
    have = {name for run in runs for name, series in run.metrics.items() if len(series.steps)}
    known = {metric for chart in wanted for metric, _, _ in chart.lines} | _NOT_DRAWN
    others = sorted({name.removeprefix("eval/") for name in have - known})
    wanted += [Chart(name.replace("/", "-"), name, _both(name), "") for name in others]
    curves = sum(metric in run.metrics for chart in wanted for metric, _, _ in chart.lines for run in runs)
    columns = columns_for(curves, len(runs))
    drawn, missed = [], []
    for number, chart in enumerate(wanted):
        lines = tuple(
            Line(place, label, style, thin(_with_start(run, metric), columns))
            for metric, label, style in chart.lines
            for place, run in enumerate(runs)
            if metric in run.metrics
        )
        if lines:
            drawn.append(Drawn(chart, lines, number < own))
        elif chart.absent:
            missed.append(chart)
    return drawn, missed


def _of_one_run() -> Iterator[Chart]:
    for chart in CHARTS:
        family, _, side = chart.name.partition("-")
        if family not in _TOGETHER or side not in ("chosen", "rejected"):
            yield chart
        elif side == "chosen":
            sides = ("chosen", "rejected")
            lines = [(f"{family}/{side}", side, "line") for side in sides]
            lines += [(f"eval/{family}/{side}", f"{side}, held out", "points") for side in sides]
            yield Chart(family, _TOGETHER[family], tuple(lines), chart.absent)


@dataclass(frozen=True)
class Point:
    """A run's samples at one time: how good they are, and how far from the reference."""

    run: int
    step: int
    kl: float
    reward: float
    kl_error: float
    reward_error: float
    """Standard errors; 0 where they are not known."""


def frontier(runs: Sequence[Run]) -> tuple[list[Point], str]:
    """Reward against KL, a point per run and evaluation (Rafailov et al. 2023, figure 2), and what the reward is.

    The true reward of samples where there is one, else held-out accuracy.
    """
    metric = "samples/true_reward"
    if not any(metric in run.metrics for run in runs):
        metric = "eval/rewards/accuracies"
    found = []
    for place, run in enumerate(runs):
        kl, errors = _by_step(run, "samples/kl"), _by_step(run, "samples/kl_error")
        rewards, samples = _by_step(run, metric), true_rewards(run)
        for step in sorted(kl.keys() & rewards.keys()):
            values = samples.get(step, []) if metric == "samples/true_reward" else []
            error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            found.append(Point(place, step, kl[step], rewards[step], errors.get(step, 0.0), error))
    label = "true reward of sampled answers" if metric == "samples/true_reward" else "held-out reward accuracy"
    return found, label


def _with_start(run: Run, name: str) -> Series:
    """A metric; a KL with its beginning, which is 0 where the run's reference is the model it started from."""
    series = run.metrics[name]
    other = inside(run.config, "reference", "path")
    if name != "samples/kl" or other or not len(series.steps) or series.steps[0] == 0:
        return series
    return Series(np.insert(series.steps, 0, 0), np.insert(series.values, 0, 0.0))


def _by_step(run: Run, name: str) -> dict[int, float]:
    empty = Series(np.zeros(0, dtype=np.int64), np.zeros(0))
    steps, values = (_with_start(run, name) if name in run.metrics else empty).finite()
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def lengths(run: Run) -> dict[str, Any] | None:
    """Length of sampled answers at the first and last sampling, and how it goes with the true reward; None = none."""
    if not run.samples:
        return None
    first, last = run.samples[0]["step"], run.samples[-1]["step"]
    letters = {
        step: [len(str(row.get("answer", ""))) for row in run.samples if row["step"] == step] for step in (first, last)
    }
    rows = [row for row in run.samples if row["step"] == last and isinstance(row.get("true_reward"), int | float)]
    both = np.array([(len(str(row["answer"])), row["true_reward"]) for row in rows], dtype=np.float64)
    varied = len(both) > 2 and bool((both.std(axis=0) > 0).all())
    tokens = _by_step(run, "samples/length")
    return {
        "letters": (float(np.mean(letters[first])), float(np.mean(letters[last]))) if first != last else None,
        "tokens": (tokens[first], tokens[last]) if first in tokens and last in tokens and first != last else None,
        "correlation": float(np.corrcoef(both[:, 0], both[:, 1])[0, 1]) if varied else None,
        "answers": len(letters[last]),
    }
