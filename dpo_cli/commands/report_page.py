"""``dpo report`` as one HTML file: numbers and texts of runs as JSON in it, drawn by a script of ours in it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_cli import __version__
from dpo_cli.commands.pages import embedded, environment, script_hash, source
from dpo_cli.errors import one_line
from dpo_cli.reporting.charts import Drawn, Point, charts, frontier, lengths
from dpo_cli.reporting.compare import (
    MISSING,
    ONLY_LOOKS,
    Goal,
    SeedGroup,
    differences,
    estimates,
    in_words,
    seed_groups,
    seeds_of,
    settings,
    short_key,
    telling,
    verdict,
)
from dpo_cli.reporting.evaluations import calibration, measured
from dpo_cli.reporting.findings import findings, row_counts
from dpo_cli.reporting.runs import Run, byte_size, duration, size_of
from dpo_cli.whole_folder import write_file

LABELS = {
    "samples/true_reward": "true reward",
    "eval/rewards/accuracies": "held-out accuracy",
    "eval/rewards/margins": "held-out margin",
    "eval/loss": "held-out loss",
    "samples/kl": "KL, nats",
    "samples/length": "tokens per sample",
    "rewards/accuracies": "accuracy",
    "loss": "loss",
}
"""Metrics at a run's end that are shown in tables, in this order."""
COLOURS = 10
"""Colours of the palette; more groups than that have the hues of a rainbow in their order."""
_LONGEST_TEXT = 700
"""Letters of a sampled prompt or answer."""
_ALL_SAMPLES, _MOST_SAMPLES = 240, 24
"""Sampled prompts of all runs together, and of one."""


def write_report(
    file: Path, runs: Sequence[Run], *, title: str, goal: Goal, defaults: Mapping[str, Any] | None = None
) -> str:
    """Write the page; returns what it says of the best run.

    Args:
        file: its folder is made; it appears whole or not at all.
        runs: at least one.
        title: of the page.
        goal: to choose the best run by.
        defaults: the configuration that a single run would have had with nothing set; None = not known.
    """
    goal = goal.of(runs)
    pages = environment()
    script = source(pages, "report.js.jinja")
    groups = seed_groups(runs)
    drawn, missed = charts(runs)
    points, reward = frontier(runs)
    bins = calibration(runs)
    best = verdict(runs, goal, LABELS.get(goal.metric or ""))
    page = pages.get_template("report.html.jinja").render(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        best=best if len(runs) > 1 else "",
        findings=findings(runs),
        runs=runs,
        run_table=run_table(runs, groups, goal.metric),
        groups=groups,
        colours=[_colour(number, len(groups)) for number in range(len(groups))],
        seeds=seed_table(runs, groups, goal.metric),
        set_keys=_set_keys(runs, defaults),
        same=_same(runs),
        looks=[key for key in differences([run.config for run in runs]) if key in ONLY_LOOKS],
        charts=[(each.chart, _summary(each)) for each in drawn if each.known],
        other_charts=[(each.chart, _summary(each)) for each in drawn if not each.known],
        missed=missed,
        points=points,
        reward=reward,
        calibration=bins,
        lengths=[(run.name, found) for run in runs if (found := lengths(run)) is not None],
        has_samples=any(run.samples for run in runs),
        sides=_sides(runs),
        measured=measured(runs),
        provenance=[_provenance(run) for run in runs],
        data=embedded(payload(runs, groups, drawn, points, bins)),
        script=script,
        script_hash=script_hash(str(script)),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, page.encode("utf-8", "backslashreplace"))  # half a surrogate pair has no UTF-8
    return best


def payload(
    runs: Sequence[Run],
    groups: Sequence[SeedGroup],
    drawn: Sequence[Drawn],
    points: Sequence[Point],
    bins: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the page's script draws."""
    group_of = {place: number for number, group in enumerate(groups) for place in group.runs}
    steps: dict[bytes, int] = {}
    tables: list[list[int]] = []

    def shared(line_steps: Any) -> int:
        """Curves of one run mostly have the same steps, which are written once."""
        key = line_steps.tobytes()
        if key not in steps:
            steps[key] = len(tables)
            tables.append(line_steps.tolist())
        return steps[key]

    found = {}
    for each in drawn:
        lines = []
        for line in each.lines:
            curve = line.curve
            said = {"run": line.run, "label": line.label, "style": line.style, "steps": shared(curve.steps)}
            said["mean"] = _short(curve.mean)
            if curve.low is not curve.mean:
                said |= {"low": _short(curve.low), "high": _short(curve.high)}
            if len(curve.not_finite):
                said["bad"] = curve.not_finite[:200].tolist()
            lines.append(said)
        found[each.chart.name] = {"title": each.chart.title, "lines": lines}
    return {
        "runs": [
            {
                "name": one_line(run.name),
                "group": group_of[place],
                "loss": one_line(str((run.config.get("loss") or {}).get("name", ""))),
            }
            for place, run in enumerate(runs)
        ],
        "groups": [{"name": one_line(group.name), "runs": list(group.runs)} for group in groups],
        "colours": [_colour(number, len(groups)) for number in range(len(groups))],
        "steps": tables,
        "charts": found,
        "frontier": [
            [point.run, point.step, *_short([point.kl, point.reward, point.kl_error, point.reward_error])]
            for point in points
        ],
        "calibration": list(bins),
        "samples": [_samples(run, len(runs)) for run in runs],
    }


def _short(values: Any) -> list[float]:
    """Five digits are more than a screen can show."""
    return [float(f"{value:.5g}") for value in values]


def _colour(number: int, count: int) -> dict[str, Any]:
    if count <= COLOURS:
        return {"class": f"c{number}", "hue": 0}
    return {"class": "hue", "hue": round(270 - 300 * number / (count - 1))}


def _samples(run: Run, runs: int) -> dict[str, Any] | None:
    """The first prompts with the answers of the first and of the last sampling."""
    if not run.samples:
        return None
    first, last = run.samples[0]["step"], run.samples[-1]["step"]
    before = [row for row in run.samples if row["step"] == first] if first != last else []
    after = [row for row in run.samples if row["step"] == last]
    answers = {str(row.get("prompt", "")): row for row in before}
    shown = max(3, min(_MOST_SAMPLES, _ALL_SAMPLES // runs))
    return {
        "steps": [first, last],
        "of": len(after),
        "rows": [
            [_cut(row.get("prompt")), *_answer(answers.get(str(row.get("prompt", "")))), *_answer(row)]
            for row in after[:shown]
        ],
    }


def _answer(row: Mapping[str, Any] | None) -> list[Any]:
    return [None, None] if row is None else [_cut(row.get("answer")), row.get("true_reward")]


def _cut(text: Any) -> str:
    text = str(text)
    more = len(text) - _LONGEST_TEXT
    return text if more <= 0 else f"{text[:_LONGEST_TEXT]} … ({more:,} more characters)"


def run_table(runs: Sequence[Run], groups: Sequence[SeedGroup], metric: str | None) -> dict[str, Any]:
    """Headings, and a row per run: its cells as text and by what they are sorted; with the metric that the best is
    chosen by."""
    differing = telling(differences([run.config for run in runs])) if len(runs) > 1 else {}
    metrics = _shown_metrics(runs, metric)
    group_of = {place: number for number, group in enumerate(groups) for place in group.runs}
    rows = []
    for place, run in enumerate(runs):
        cells: list[tuple[str, str | float]] = [(run.status.word, run.status.word)]
        cells += [_cell(values[place]) for values in differing.values()]
        cells += [_number(run.final(name)) for name in metrics]
        total = "" if run.planned is None or run.planned == run.step else f" / {run.planned:,}"
        cells.append((f"{run.step:,}{total}", run.step))
        cells += [_number(run.final("pairs_per_second"), 3), _number(run.final("memory/rss_gib"), 3)]
        seconds = run.record.get("seconds")
        cells.append((duration(seconds), seconds) if isinstance(seconds, int | float) else (MISSING, ""))
        rows.append({"run": place, "name": one_line(run.name), "group": group_of[place], "cells": cells})
    headings = [
        "status",
        *(short_key(key, differing) for key in differing),
        *metrics.values(),
        *("updates", "pairs/s", "memory, GiB", "time"),
    ]
    return {"headings": headings, "rows": rows}


def _shown_metrics(runs: Sequence[Run], wanted: str | None) -> dict[str, str]:
    """Those that any run has, and what they are called; what was not held out is shown only where nothing was, or where
    it is wanted."""
    asked = {} if wanted is None else {wanted: wanted}
    metrics = [name for name in asked | LABELS if any(run.final(name) is not None for run in runs)]
    held_out = any(name.startswith("eval/") for name in metrics)
    return {
        name: LABELS.get(name, name)
        for name in metrics
        if name == wanted or not held_out or name not in ("loss", "rewards/accuracies")
    }


def _number(value: float | None, digits: int = 4) -> tuple[str, str | float]:
    return (MISSING, "") if value is None else (f"{value:.{digits}g}", value)


def _cell(text: str) -> tuple[str, str | float]:
    try:
        return one_line(text), float(text)
    except ValueError:
        return one_line(text, 60), text


def seed_table(runs: Sequence[Run], groups: Sequence[SeedGroup], metric: str | None) -> dict[str, Any] | None:
    """Means over seeds with 95 % intervals, if any group has several; None = no run was repeated."""
    if all(len(group.runs) < 2 for group in groups):
        return None
    metrics = _shown_metrics(runs, metric)
    by_metric = [{each.group.name: each for each in estimates(runs, groups, Goal(name))} for name in metrics]
    rows = []
    for number, group in enumerate(groups):
        found = [each.get(group.name) for each in by_metric]
        cells = [(MISSING, "") if each is None else (str(each), each.mean) for each in found]
        seeds = seeds_of([runs[place] for place in group.runs])
        said = str(seeds) + (f" ({len(group.runs)} runs)" if len(group.runs) > seeds else "")
        rows.append({"name": one_line(group.name), "group": number, "cells": [(said, seeds), *cells]})
    return {"headings": ["seeds", *metrics.values()], "rows": rows}


def _set_keys(runs: Sequence[Run], defaults: Mapping[str, Any] | None) -> list[tuple[str, str, str]] | None:
    """Of a single run, what was set: key, value, default. None = there are several, or defaults aren't known."""
    if len(runs) > 1 or defaults is None or not runs[0].config:
        return None
    found = differences([runs[0].config, defaults])
    required = ("???", MISSING)
    return [
        (key, one_line(value), "" if default in required else one_line(default))
        for key, (value, default) in found.items()
        if value != MISSING
    ]


def _same(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Settings that all runs share."""
    flats = [settings(run.config) for run in runs]
    return [
        (key, one_line(in_words(value)))
        for key, value in flats[0].items()
        if all(key in other and other[key] == value for other in flats)
    ]


def _summary(drawn: Drawn) -> str:
    """A chart in words, for those who don't see it."""
    said = []
    for line in drawn.lines[:3]:
        mean = line.curve.mean
        if len(mean):
            said.append(f"run {line.run + 1}, {line.label}: from {mean[0]:.4g} to {mean[-1]:.4g}")
    return f"{drawn.chart.title}. {'; '.join(said)}"


_COUNTS = {
    "read": "rows read",
    "bad": "unusable, left out",
    "without_preference": "without a preference, left out",
    "dropped_too_long": "too long, left out",
    "made_equal": "made equal by template or cut, left out",
    "nothing_scored": "nothing to learn from, left out",
    "prompts_held_out": "prompt is held out, left out",
    "prompts_truncated": "prompts cut",
    "answers_truncated": "answers cut",
    "duplicates": "repeat an earlier row, kept",
    "special_in_text": "spell a special token",
    "longest": "longest, tokens",
    "groups": "groups used",
}


def _sides(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of each side, once for all runs that read the same."""
    found: list[dict[str, Any]] = []
    for side, title in (("train", "Training"), ("held_out", "Held out")):
        seen: dict[tuple[tuple[str, int], ...], list[str]] = {}
        messages: dict[str, None] = {}
        for run in runs:
            read = (run.record.get("data") or {}).get(side)
            if read:
                counts = row_counts(read)
                seen.setdefault(tuple((key, counts[key]) for key in _COUNTS if key in counts), []).append(run.name)
                messages.update(dict.fromkeys(map(str, (read.get("rows") or {}).get("first_bad") or [])))
        for counts_of, names in seen.items():
            found.append(
                {
                    "title": title,
                    "runs": ""
                    if len(seen) == 1
                    else ", ".join(map(one_line, names[:4])) + (" …" if len(names) > 4 else ""),
                    "counts": [(_COUNTS[key], f"{value:,}") for key, value in counts_of],
                    "messages": [one_line(message) for message in list(messages)[:5]],
                }
            )
    return found


def _provenance(run: Run) -> dict[str, str]:
    record = run.record
    reference = record.get("reference") or {}
    values = {
        "run": run.name,
        "folder": str(run.folder),
        "size": byte_size(size_of(run.folder)),
        "started": str(record.get("started", MISSING)),
        "versions": ", ".join(f"{name} {value}" for name, value in (record.get("versions") or {}).items()) or MISSING,
        "code": str(record.get("code", MISSING))[:12],
        "data": str((record.get("data") or {}).get("fingerprint", MISSING))[:12],
        "precision": str(record.get("precision", MISSING)),
        "attention": str(record.get("attention", MISSING)),
        "reference": f"{reference['tokens_computed']:,} tokens computed, {reference['tokens_read']:,} read"
        if {"tokens_computed", "tokens_read"} <= reference.keys()
        else MISSING,
    }
    return {key: one_line(value) for key, value in values.items()}
