"""Runs side by side: what differs in their configurations, seeds put together, and which is best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpo_cli.metric_names import lower_is_better
from dpo_cli.reporting.runs import Run, inside

_NOT_COMPARED = ("run_dir", "resume", "resume_force", "tracker", "sweep")
"""Sections that say nothing of what is trained."""
ONLY_LOOKS = (
    *(f"train.{key}" for key in ("log_every", "eval_every", "sample_every", "save_every", "keep_last", "keep_best")),
    *("train.on_failed_save", "data.workers", "data.cache_dir", "reference.cache_dir", "launch.hang_timeout"),
)
"""Keys that change no update of a run, only what is looked at or kept of it, and where."""
_LONGEST_NAME = 60
"""Letters; settings that take more to be told apart are called by their runs."""
_PREFERRED = ("samples/true_reward", "eval/rewards/accuracies", "rewards/accuracies", "eval/loss", "loss")
"""A run's quality, the best measure first. A loss compares nothing where losses or beta differ, so it comes last."""
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""

MISSING = "\u2013"
"""In place of a value that a configuration does not have."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by full keys, such as ``loss.beta``; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says about the training itself, by full keys."""
    return flat({key: value for key, value in config.items() if key not in _NOT_COMPARED})


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The keys whose values are not the same in all, with each one's value in words. One alone differs from nothing."""
    flats = [settings(config) for config in configs]
    keys = dict.fromkeys(key for each in flats for key in each)
    said = {key: [in_words(each[key]) if key in each else MISSING for each in flats] for key in keys}
    return {key: values for key, values in said.items() if len(set(values)) > 1}


def telling(differing: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Of differences those that tell trainings apart: not ``ONLY_LOOKS``, nor what one loss has and another lacks."""
    return {
        key: values for key, values in differing.items() if len(set(values) - {MISSING}) > 1 and key not in ONLY_LOOKS
    }


def in_words(value: Any) -> str:
    """A value as on a command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed alone."""

    name: str
    """What tells it from the other groups."""
    runs: tuple[int, ...]
    """Their places in the list of runs."""


def seed_groups(runs: Sequence[Run]) -> list[SeedGroup]:
    """Runs by everything that changes an update but the seed, in the order of their settings' values."""
    together: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        said = {
            key: in_words(value)
            for key, value in settings(run.config).items()
            if key != "seed" and key not in ONLY_LOOKS
        }
        key = json.dumps(said, sort_keys=True) if said else f"run {place}"
        together.setdefault(key, []).append(place)
    members = list(together.values())
    configs = [{**runs[group[0]].config, "seed": 0} for group in members]
    differing = telling(differences(configs)) if all(configs[0].keys() == each.keys() for each in configs) else {}
    names = [
        ", ".join(
            f"{short_key(key, differing)}={values[n]}" for key, values in differing.items() if values[n] != MISSING
        )
        for n in range(len(members))
    ]
    groups = [
        SeedGroup(name if 0 < len(name) <= _LONGEST_NAME else _by_runs(runs, group), tuple(group))
        for name, group in zip(names, members, strict=True)
    ]
    order = sorted(range(len(groups)), key=lambda n: [_order(values[n]) for values in differing.values()])
    return [groups[n] for n in order]


def _by_runs(runs: Sequence[Run], group: Sequence[int]) -> str:
    more = len(group) - 1
    return runs[group[0]].name + (f" and {more} more" if more else "")


def seeds_of(runs: Sequence[Run]) -> int:
    """How many seeds there are among runs."""
    return len({in_words(run.config.get("seed")) for run in runs})


def short_key(key: str, among: Sequence[str] | Mapping[str, Any]) -> str:
    """A key's last word, where no other key ends in it, and two words of keys inside a section's part, such as
    ``stop.kl``; ``loss.name`` is the loss, ``model.adapter.name`` the adapter."""
    words = key.split(".")
    if words[-1] == "name" and len(words) > 1:
        return words[-2]
    last = ".".join(words[max(1, len(words) - 2) :]) if len(words) > 2 else words[-1]
    return last if sum(f".{other}".endswith(f".{last}") for other in among) == 1 else key


def _order(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


class Measured(Protocol):
    """What has metrics."""

    def final(self, name: str) -> float | None:
        """The newest value of one; None = it has none."""


def default_metric(runs: Sequence[Measured]) -> str | None:
    """The best measure of quality that most of the runs have."""
    having = {name: sum(run.final(name) is not None for run in runs) for name in _PREFERRED}
    return max(_PREFERRED, key=lambda name: having[name]) if any(having.values()) else None


class Goal(NamedTuple):
    """By what the best run is chosen."""

    metric: str | None
    """None = the best measure of quality that most of the runs have."""
    lower: bool | None = None
    """Whether less of it is better; None = as its name says."""

    def of(self, runs: Sequence[Measured]) -> Goal:
        """The same with nothing left open; the metric stays None where the runs have none to go by."""
        metric = self.metric or default_metric(runs)
        return Goal(metric, lower_is_better(metric) if metric and self.lower is None else self.lower)


def goal_of(settings: Any) -> Goal:
    """What ``sweep`` of a configuration asks for; nothing, whatever else it is."""
    metric, direction = (inside(settings, name) for name in ("metric", "direction"))
    if not isinstance(metric, str):
        return Goal(None)
    return Goal(metric, {"minimize": True, "maximize": False}.get(str(direction)))


def common_goal(runs: Sequence[Run]) -> Goal:
    """What the configurations of all runs ask for, if they agree and any run has it."""
    goals = {goal_of(run.config.get("sweep")) for run in runs}
    goal = goals.pop() if len(goals) == 1 else Goal(None)
    return goal if goal.metric and any(run.final(goal.metric) is not None for run in runs) else Goal(None)


@dataclass(frozen=True)
class Estimate:
    """A group's mean of a metric, and how sure it is."""

    group: SeedGroup
    mean: float
    half: float | None
    """Half of the 95 % interval; None = unknown."""
    seeds: int
    runs: int
    """Those of one seed count as one: they say nothing of other seeds."""
    error: float | None
    """Standard error."""

    def __str__(self) -> str:
        if self.half is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.half:.2g}"


def estimates(runs: Sequence[Run], groups: Sequence[SeedGroup], goal: Goal) -> list[Estimate]:
    """Each group's mean over its seeds with a 95 % interval, the best first; groups without the metric are left out.

    Over seeds the interval is Student's, of the mean; of one seed it is what sampling leaves open, where that is known.
    Runs of one seed are one run done again: their mean is that seed's value.
    """
    metric, lower = goal.of(runs)
    if metric is None:
        return []
    found = []
    for group in groups:
        members = [runs[place] for place in group.runs]
        pairs = [(run, value) for run in members if (value := run.final(metric)) is not None]
        by_seed: dict[str, list[float]] = {}
        for run, value in pairs:
            by_seed.setdefault(in_words(run.config.get("seed")), []).append(value)
        values = [float(np.mean(same)) for same in by_seed.values()]
        if len(values) >= 2:
            error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
            error = 0.0 if error < 1e-12 * abs(values[0]) else error  # rounding alone
            found.append(
                Estimate(group, float(np.mean(values)), t_975(len(values) - 1) * error, len(values), len(pairs), error)
            )
        elif values:
            known = sampling_error(pairs[0][0], metric)
            found.append(Estimate(group, values[0], None if known is None else 1.96 * known, 1, len(pairs), known))
    sign = 1 if lower else -1
    return sorted(found, key=lambda estimate: sign * estimate.mean)


def sampling_error(run: Run, metric: str) -> float | None:
    """Standard error of a run's final value for having been measured on so many rows; None = not known."""
    value = run.final(metric)
    if metric == "samples/kl":
        return run.final("samples/kl_error")
    if metric == "samples/true_reward":
        rewards = true_rewards(run)
        last = rewards.get(max(rewards, default=0), [])
        return float(np.std(last, ddof=1)) / math.sqrt(len(last)) if len(last) > 1 else None
    if metric == "eval/rewards/accuracies" and value is not None:
        rows = held_out_rows(run)
        return math.sqrt(max(value * (1 - value), 0.0) / rows) if rows else None
    return None


def true_rewards(run: Run) -> dict[int, list[float]]:
    """True rewards of the sampled answers, by update."""
    found: dict[int, list[float]] = {}
    for row in run.samples:
        if isinstance(row.get("true_reward"), int | float):
            found.setdefault(row["step"], []).append(float(row["true_reward"]))
    return found


def held_out_rows(run: Run) -> int:
    """How many groups were held out."""
    held = inside(run.record, "data", "held_out")
    groups = inside(held, "groups") or inside(held, "tokenized", "groups")
    return groups if isinstance(groups, int) else 0


def t_975(freedom: float) -> float:
    """97.5 % quantile of Student's t; between and beyond the table to 0.3 %."""
    if freedom <= len(_T_975):
        return float(np.interp(freedom, range(1, len(_T_975) + 1), _T_975))
    return 1.96 + 2.372 / freedom + 2.82 / freedom**2  # Cornish and Fisher's expansion


def verdict(runs: Sequence[Run], goal: Goal, label: str | None = None) -> str:
    """Which settings were best by a metric, how sure that is, and what comes next; one sentence or two.

    Args:
        runs: finished ones count; if there are none, all.
        goal: by which metric of a run's end, and which way.
        label: the metric in words.
    """
    done = [run for run in runs if run.status.word == "done"] or list(runs)
    goal = goal.of(done)
    ranked = estimates(done, seed_groups(done), goal)
    if not ranked:
        return "No run has a metric to choose the best by."
    best = ranked[0]
    how = "one seed: no interval"
    if best.half is not None:
        over = f"over {best.seeds} seeds" if best.seeds > 1 else "from the rows measured; one seed"
        how = f"95 % interval {over}"
    if best.runs > best.seeds:
        how += f"; {best.runs} runs, of which those of one seed count as one"
    sure = f" ({how})"
    text = f"Best by {label or goal.metric}: {best.group.name}, {best}{sure}."
    if len(ranked) == 1:
        return text
    second = ranked[1]
    text += f" Next: {second.group.name}, {second}"
    half = _half_of_difference(best, second)
    if half is None:
        return f"{text}; how much of the difference is chance is not known."
    difference = abs(best.mean - second.mean)
    return text + (
        f"; the difference, {difference:.2g} ± {half:.2g}, is too small to tell the two apart."
        if difference <= half
        else f"; the difference is {difference:.2g} ± {half:.2g}."
    )


def _half_of_difference(one: Estimate, other: Estimate) -> float | None:
    """Half of Welch's 95 % interval of the difference of two means."""
    if one.error is None or other.error is None or (one.seeds > 1) != (other.seeds > 1):
        return None
    variances = one.error**2, other.error**2
    if one.seeds == 1 or sum(variances) == 0:
        return 1.96 * math.sqrt(sum(variances))
    parts = sum(v**2 / (each.seeds - 1) for v, each in zip(variances, (one, other), strict=True))
    return t_975(sum(variances) ** 2 / parts) * math.sqrt(sum(variances))
