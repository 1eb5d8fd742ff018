"""The charts of ``dpo report`` as pictures for a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpo_cli.reporting.charts import Drawn, Point, charts, frontier
from dpo_cli.reporting.compare import seed_groups
from dpo_cli.reporting.runs import Run, inside

_MOST_NAMED = 12
"""Groups of runs that a legend names."""
_MARKS = "os^DvPX<"
_BAND_RUNS = 6
"""Runs up to which the range around a mean is drawn."""


def write_pictures(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Write a PNG per chart, 300 dots per inch and 3.4 inches wide, a column of most papers; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = seed_groups(runs)
    group_of = {place: number for number, group in enumerate(groups) for place in group.runs}
    palette = matplotlib.colormaps["tab10" if len(groups) <= 10 else "viridis"]
    scale = 1 if len(groups) <= 10 else 1 / (len(groups) - 1)
    colours = [palette(number if scale == 1 else number * scale) for number in range(len(groups))]
    look = (groups, group_of, colours)
    names = []
    for each in charts(runs)[0]:
        names.append(_picture(folder, each.chart.name, _curves(each, len(runs)), "update", each.chart.title, look))
    points, reward = frontier(runs)
    if points:
        losses = [str(inside(run.config, "loss", "name") or "") for run in runs]
        draw = _points(points, losses)
        names.append(_picture(folder, "frontier", draw, "KL to the reference, nats per answer", reward, look))
    return names


def _picture(
    folder: Path, name: str, draw: Callable[[Axes, Any], bool], across: str, up: str, look: tuple[Any, Any, Any]
) -> str:
    figure = Figure(figsize=(3.4, 2.4), layout="constrained")
    axes = figure.add_subplot()
    by_run = draw(axes, look)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(_plain(up), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    groups, _, colours = look
    if by_run and 1 < len(groups) <= _MOST_NAMED:
        for group, colour in zip(groups, colours, strict=True):
            axes.plot([], [], color=colour, label=_plain(group.name))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, frameon=False)
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=300)
    return file.name


def _plain(text: str) -> str:
    """A dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _curves(drawn: Drawn, runs: int) -> Callable[[Axes, Any], bool]:
    def draw(axes: Axes, look: Any) -> bool:
        _, group_of, colours = look
        labels = list(dict.fromkeys(line.label for line in drawn.lines))
        for line in drawn.lines:
            curve = line.curve
            colour = colours[group_of[line.run]] if runs > 1 else f"C{labels.index(line.label)}"
            style = {"line": "-", "points": "--" if len(labels) > 1 else "-", "dashed": "-."}[line.style]
            marker = "o" if line.style == "points" and len(curve.steps) <= 40 else None
            axes.plot(
                curve.steps,
                curve.mean,
                style,
                color=colour,
                linewidth=0.9,
                marker=marker,
                markersize=2,
                label=line.label if runs == 1 and len(labels) > 1 else None,
                zorder=3 if line.style == "line" else 2,
            )
            if runs <= _BAND_RUNS and not np.array_equal(curve.low, curve.high):
                axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        for line in drawn.lines if runs > 1 and len(labels) > 1 else ():
            if line.style != "line":
                axes.plot([], [], {"points": "--", "dashed": "-."}[line.style], color="grey", label=line.label)
                break
        return runs > 1

    return draw


def _points(points: Sequence[Point], losses: Sequence[str]) -> Callable[[Axes, Any], bool]:
    """Runs of several losses have their loss's colour and mark, as in Rafailov et al. 2023, figure 2."""
    names = list(dict.fromkeys(losses[point.run] for point in points))

    def draw(axes: Axes, look: Any) -> bool:
        _, group_of, colours = look
        named: set[str] = set()
        for run in dict.fromkeys(point.run for point in points):
            own = [point for point in points if point.run == run]
            loss = losses[run]
            number = names.index(loss)
            axes.errorbar(
                [point.kl for point in own],
                [point.reward for point in own],
                [point.reward_error for point in own],
                [point.kl_error for point in own],
                _MARKS[number % len(_MARKS)] + "-",
                color=f"C{number}" if len(names) > 1 else colours[group_of[run]],
                label=loss if len(names) > 1 and loss not in named else None,
                markersize=3,
                linewidth=0.6,
                elinewidth=0.5,
            )
            named.add(loss)
        return len(names) == 1

    return draw
