"""What to worry about in a run, by rules that are written down here and in docs/report.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dpo_cli.errors import one_line
from dpo_cli.reporting.compare import held_out_rows, true_rewards
from dpo_cli.reporting.runs import Run, inside

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

DISPLACED = 0.1
"""Share of its first value by which the chosen answers' log-prob may fall before it is a warning, not a note."""
OVERFITTED = 0.02
"""Share by which the held-out loss may end above its least."""
SURE = 2.0
"""Standard errors that a difference must have to be taken for one."""
LONGER = 0.2
"""Share by which sampled answers may grow."""


@dataclass(frozen=True)
class Said:
    """One thing about one run."""

    name: str
    level: Level
    detail: str
    """With this run's numbers."""


@dataclass(frozen=True)
class Finding:
    """One thing about some runs."""

    name: str
    level: Level
    advice: str
    details: tuple[tuple[str, str], ...]
    """Each run's name, and its numbers in words."""


ADVICE = {
    "failed": "",
    "broken": "",
    "preempted": "",
    "running": "The numbers are those so far.",
    "unreadable": "What could be read is shown.",
    "not-finite": "The curves have a red cross at such updates. Lower optim.lr, or look at the rows.",
    "displacement": "Likelihood displacement: chosen answers became less likely as well, which the margin does not "
    "show. Lower optim.lr, raise loss.beta, or add loss.sft_weight.",
    "over-optimised": "The samples are worse by their true reward while the implicit reward says they are better: "
    "take an earlier checkpoint, or raise loss.beta.",
    "over-fitted": "Held-out rows were fitted better earlier: train for fewer updates, or use train.keep_best.",
    "longer-answers": "Preferences often reward length: compare at equal length before believing a win rate.",
    # What training and dpo eval have said themselves, in words that end in what to do: evaluation/alarms.py.
    **dict.fromkeys(
        ("likelihood-displacement", "far-from-reference", "entropy-collapse", "repetition", "length-bias"), ""
    ),
    **dict.fromkeys(("no-better-than-length", "overconfident", "stopped-early"), ""),
    "rows-left-out": "dpo inspect names the rows.",
    "rows-cut": "dpo inspect shows them; data.max_length decides.",
    "slow-attention": "Numbers are right, speed is not.",
    "resumed": "The curves are of all parts together.",
    "nothing-held-out": "Accuracy and margin are then of rows that are being trained on: set data.eval.",
}
"""What can be said of runs, in the order in which it is shown within a level, and what to do about it."""

_LONGEST_DETAIL = 240
"""Letters of what is said of one of several runs."""


def findings(runs: Sequence[Run]) -> list[Finding]:
    """What there is to say about the runs, the worst first, each thing once; of one run at length."""
    together: dict[tuple[str, Level], list[tuple[str, str]]] = {}
    for run in runs:
        for said in about(run):
            detail = said.detail if len(runs) == 1 else one_line(said.detail, _LONGEST_DETAIL)
            together.setdefault((said.name, said.level), []).append((run.name, detail))
    order = {name: place for place, name in enumerate(ADVICE)}
    keys = sorted(together, key=lambda key: (LEVELS.index(key[1]), order.get(key[0], len(order))))
    return [Finding(name, level, ADVICE.get(name, ""), tuple(together[name, level])) for name, level in keys]


def about(run: Run) -> Iterator[Said]:
    """What there is to say about one run: by its numbers, then what it and ``dpo eval`` have said themselves."""
    found = list(_by_numbers(run))
    yield from found
    known = {said.name for said in found if said.level != "note"}
    known |= {other for name, other in _THE_SAME.items() if name in known}
    for said in _alarms(run):
        if said.name not in known:
            known.add(said.name)
            yield said


_THE_SAME = {"displacement": "likelihood-displacement"}
"""What an alarm of evaluations is called that says what a rule here says."""


def _alarms(run: Run) -> Iterator[Said]:
    """Alerts of training, by when they were raised, and alarms of ``dpo eval``."""
    for alert in run.record.get("alerts") or []:
        name, step, text = (alert.get(key) for key in ("name", "step", "text"))
        if isinstance(name, str) and isinstance(text, str):
            level: Level = "note" if name == "stopped-early" else "warning"
            yield Said(name, level, f"after update {step}: {text}")
    alarms = run.evaluation.get("alarms")
    for alarm in alarms if isinstance(alarms, list) else []:
        name, text = (inside(alarm, key) for key in ("name", "text"))
        if isinstance(name, str) and isinstance(text, str):
            yield Said(name, "warning", f"dpo eval: {text}")


def _by_numbers(run: Run) -> Iterator[Said]:
    yield from _outcome(run)
    yield from _not_finite(run)
    yield from _displacement(run)
    yield from _over_optimised(run)
    yield from _over_fitted(run)
    yield from _longer(run)
    yield from _rows(run)
    attention = str(run.record.get("attention") or "")
    if "one call for each answer" in attention:
        yield Said("slow-attention", "warning", attention)
    elif attention and not attention.startswith("groups"):
        yield Said("slow-attention", "note", attention)


def _outcome(run: Run) -> Iterator[Said]:
    word, why = run.status
    total = "" if run.planned is None else f" of {run.planned:,}"
    said = f"after update {run.step:,}{total}" + (f": {why}" if why else "")
    if word in ("failed", "broken"):
        yield Said(word, "error", said)
    elif word == "preempted":
        yield Said(word, "warning", said)
    elif word == "running":
        yield Said(word, "note", said)
    if run.unread:
        yield Said("unreadable", "warning", "; ".join(run.unread))
    again = [start for start in run.record.get("starts") or [] if start.get("after")]
    if again:
        places = ", ".join(f"{start.get('update', '?')}" for start in again)
        yield Said("resumed", "note", f"{len(again)} time{'s' * (len(again) > 1)}, from update {places}")
    if run.metrics and not any(name.startswith("eval/") for name in run.metrics):
        yield Said("nothing-held-out", "note", "there is no evaluation in this run")


def _not_finite(run: Run) -> Iterator[Said]:
    for name, series in run.metrics.items():
        bad = series.steps[~np.isfinite(series.values)]
        if len(bad):
            yield Said(
                "not-finite", "error", f"{name} at {len(bad):,} of {len(series.steps):,}, first at update {bad[0]:,}"
            )


def _displacement(run: Run) -> Iterator[Said]:
    """By held-out rows where there are any: they are the same at every evaluation."""
    name = "eval/logps/chosen" if "eval/logps/chosen" in run.metrics else "logps/chosen"
    ends = _ends(run, name)
    if ends is None or ends[1] >= ends[0]:
        return
    first, last = ends
    share = (first - last) / max(abs(first), 1e-9)
    if share < 0.01:
        return
    other = _ends(run, name.replace("chosen", "rejected"))
    beside = "" if other is None else f"; rejected from {other[0]:.4g} to {other[1]:.4g}"
    level: Level = "warning" if share >= DISPLACED else "note"
    yield Said(
        "displacement", level, f"log-prob of chosen answers from {first:.4g} to {last:.4g} nats ({-share:+.0%}){beside}"
    )


def _ends(run: Run, name: str) -> tuple[float, float] | None:
    """A metric at the beginning and at the end; of a metric of batches, means of the first and the last tenth."""
    series = run.metrics.get(name)
    values: list[float] = [] if series is None else series.finite().values.tolist()
    if len(values) < 2:
        return None
    some = 1 if name.startswith(("eval/", "samples/")) else max(1, len(values) // 10)
    return float(np.mean(values[:some])), float(np.mean(values[-some:]))


def _over_optimised(run: Run) -> Iterator[Said]:
    rewards = true_rewards(run)
    if len(rewards) < 2:
        return
    steps = sorted(rewards)
    means = {step: float(np.mean(rewards[step])) for step in steps}
    best, last = max(steps[:-1], key=lambda step: means[step]), steps[-1]
    error = math.hypot(*(_error(rewards[step]) for step in (best, last)))
    if means[last] < means[best] - SURE * error:
        yield Said(
            "over-optimised",
            "warning",
            f"true reward of samples from {means[best]:.3g} after update {best:,} to {means[last]:.3g} after {last:,}",
        )


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _over_fitted(run: Run) -> Iterator[Said]:
    loss, accuracy = run.metrics.get("eval/loss"), run.metrics.get("eval/rewards/accuracies")
    said = []
    if loss is not None and len(loss.finite().values) > 1:
        steps, values = loss.finite()
        least = int(np.argmin(values))
        if values[-1] > values[least] + OVERFITTED * abs(values[least]):
            said.append(f"held-out loss from {values[least]:.4g} after update {steps[least]:,} to {values[-1]:.4g}")
    if accuracy is not None and len(accuracy.finite().values) > 1 and (rows := held_out_rows(run)):
        steps, values = accuracy.finite()
        most = int(np.argmax(values))
        share = float(values[most])
        if values[most] - values[-1] > SURE * math.sqrt(2 * share * (1 - share) / rows) and most < len(values) - 1:
            said.append(f"held-out accuracy from {share:.3f} after update {steps[most]:,} to {values[-1]:.3f}")
    if said:
        yield Said("over-fitted", "warning", "; ".join(said))


def _longer(run: Run) -> Iterator[Said]:
    ends = _ends(run, "samples/length")
    if ends is not None and ends[1] > ends[0] * (1 + LONGER):
        yield Said(
            "longer-answers", "warning", f"from {ends[0]:.4g} to {ends[1]:.4g} tokens ({ends[1] / ends[0] - 1:+.0%})"
        )


LEFT_OUT = {
    "bad": "unusable",
    "without_preference": "without a preference",
    "dropped_too_long": "too long",
    "made_equal": "made equal by the template or the cut",
    "nothing_scored": "with nothing to learn from",
    "prompts_held_out": "whose prompt is held out",
}
CUT = {"prompts_truncated": "prompts", "answers_truncated": "answers"}


def row_counts(side: Mapping[str, Any]) -> dict[str, int]:
    """What became of a side's rows, in one mapping."""
    counts = {**(side.get("rows") or {}), **(side.get("tokenized") or {})}
    counts.update({key: value for key, value in side.items() if not isinstance(value, Mapping)})
    return {key: value for key, value in counts.items() if isinstance(value, int)}


def _rows(run: Run) -> Iterator[Said]:
    data = run.record.get("data") or {}
    for name, said, level in (("rows-left-out", LEFT_OUT, "warning"), ("rows-cut", CUT, "warning")):
        parts = []
        for side in ("train", "held_out"):
            counts = row_counts(data.get(side) or {})
            read = counts.get("read", 0)
            found = [(counts[key], words) for key, words in said.items() if counts.get(key)]
            parts += [
                f"{count:,} {words}" + (f" of {read:,} {_SIDES[side]} rows" if read else f" ({_SIDES[side]})")
                for count, words in found
            ]
        if parts:
            yield Said(name, level, "; ".join(parts))  # type: ignore[arg-type]


_SIDES = {"train": "training", "held_out": "held-out"}
