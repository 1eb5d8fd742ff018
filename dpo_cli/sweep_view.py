"""What a terminal shows of a sweep while it runs: the runs on their way, those that failed, and the best of the others.

It is read from the runs' own files, as trackers do, so no run knows that it is watched.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dpo_cli.errors import one_line
from dpo_cli.reporting.compare import Goal
from dpo_cli.reporting.runs import duration, inside, planned
from dpo_cli.run_folder import read
from dpo_cli.tracking.console import Terminal
from dpo_cli.tracking.metrics_file import NewLines
from dpo_cli.tracking.progress import finite, parsed

_SECONDS_BETWEEN_LOOKS = 1.0
_OTHER_LINES = 10
"""Of a screen: title, headings, counts, the cursor's own and some air."""
_COLUMNS = {"loss": "loss", "rewards/accuracies": "acc.", "rewards/margins": "margin"}
"""Of the newest update."""

State = Literal["running", "done", "failed", "pruned", "stopped"]


class Watched:
    """A run as its files tell of it."""

    def __init__(self, name: str, run_dir: Path) -> None:
        self.name, self.run_dir = name, run_dir
        self.state: State = "running"
        self.reason = ""
        """Why it failed, for people."""
        self.values: dict[str, float] = {}
        """The newest of every metric."""
        self.step = 0
        """Updates done."""
        self.planned: int | None = None
        """Updates of the whole run."""
        self._lines = NewLines(run_dir / "metrics.jsonl")
        self._before = 0
        """Updates that an earlier start of the run has done."""
        self._first: tuple[float, int] | None = None
        """When its first own update was seen, and which it was."""
        self._newest = 0.0
        """When its newest update was seen."""
        self._looked = False

    def look(self, now: float) -> None:
        """Read what is new.

        Args:
            now: in seconds, of a clock that only goes on.
        """
        for step, values in parsed(self._lines.read()):
            self.values.update(finite(values))
            if step != self.step:
                self._newest = now
            self.step = step
        if not self._looked or self.step < self._before:
            self._before, self._looked = self.step, True
        elif self._first is None and self.step > self._before:
            self._first = (now, self.step)
        if self.planned is None:
            self.planned = planned(read(self.run_dir), {})

    def ended(self, state: State, reason: str = "") -> None:
        """It has; what its record says of its end is taken up."""
        self.look(time.monotonic())
        self.state, self.reason = state, reason
        self.values.update(finite(inside(read(self.run_dir), "final") or {}))

    def final(self, name: str) -> float | None:
        """The newest value of a metric."""
        return self.values.get(name)

    @property
    def left(self) -> float | None:
        """Seconds to its last update, at the speed so far; None = not known yet."""
        if self._first is None or self.planned is None or self.step <= self._first[1]:
            return None
        each = (self._newest - self._first[0]) / (self.step - self._first[1])
        return each * (self.planned - self.step)


class Screen:
    """The live table, where somebody watches a terminal; nothing elsewhere. A context, in which it is there."""

    def __init__(self, title: str) -> None:
        """
        Args:
            title: above the table.
        """
        self._console = Terminal(stderr=True)
        self.live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._title = title
        self._runs: dict[str, Watched] = {}
        self._shown: Live | None = None
        self._looked = 0.0

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown.stop()

    def began(self, name: str, run_dir: Path) -> None:
        """A run is on its way."""
        if self.live:
            self._runs[name] = Watched(name, run_dir)

    def ended(self, name: str, run_dir: Path, state: State, reason: str = "") -> None:
        """A run has ended, or never began."""
        if self.live:
            self._runs.setdefault(name, Watched(name, run_dir)).ended(state, reason)
            self._looked = 0.0

    def is_due(self) -> bool:
        """Whether it is time to show how it stands now."""
        return self.live and time.monotonic() - self._looked >= _SECONDS_BETWEEN_LOOKS

    def show(self, goal: Goal, waiting: int, each: float | None, parallel: int) -> None:
        """Show how it stands.

        Args:
            goal: by which runs are the best.
            waiting: points that have not begun.
            each: seconds that a run takes; None = not known yet.
            parallel: runs at a time.
        """
        now = self._looked = time.monotonic()
        for run in self._runs.values():
            if run.state == "running":
                run.look(now)
        runs = list(self._runs.values())
        left = seconds_left([run for run in runs if run.state == "running"], waiting, each, parallel)
        height = self._console.size.height
        table = picture(self._title, runs, goal, waiting=waiting, seconds=left, height=height)
        if self._shown is None:
            # What is printed meanwhile, such as why a run failed, goes above the table and stays there.
            self._shown = Live(table, console=self._console, auto_refresh=False, transient=True)
            self._shown.start()
        self._shown.update(table, refresh=True)


def seconds_left(running: Sequence[Watched], waiting: int, each: float | None, parallel: int) -> float | None:
    """How long a sweep may take yet; None = not known.

    Args:
        running: runs on their way.
        waiting: points that have not begun.
        each: seconds that a run takes; None = not known.
        parallel: runs at a time.
    """
    lefts = [each if run.left is None else run.left for run in running] + [each] * waiting
    known = [left for left in lefts if left is not None]
    if len(known) < len(lefts):
        return None
    return max(sum(known) / parallel, max(known[: len(running)], default=0.0))


def picture(
    title: str, runs: Sequence[Watched], goal: Goal, *, waiting: int, seconds: float | None, height: int
) -> RenderableType:
    """A sweep on a screen: what does not fit is only counted.

    Args:
        title: above it.
        runs: that have begun.
        goal: by which they are the best.
        waiting: points that have not begun.
        seconds: to the end of all; None = not known yet.
        height: of the screen, in lines.
    """
    goal = goal.of(runs)
    sign = 1 if goal.lower else -1
    values = {run.name: None if goal.metric is None else run.final(goal.metric) for run in runs}
    by_state = {state: [run for run in runs if run.state == state] for state in get_args(State)}
    running, failed = by_state["running"], by_state["failed"]
    ranked = sorted(
        (run for run in by_state["done"] if values[run.name] is not None),
        key=lambda run: sign * (values[run.name] or 0),
    )
    room = max(3, height - _OTHER_LINES)
    failed = failed[-max(1, room // 3) :]
    running = running[: room - len(failed)]
    ranked = ranked[: room - len(failed) - len(running)]

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = dict(_COLUMNS)
    if goal.metric is not None:
        shown.setdefault(goal.metric, goal.metric.replace("/", "/\n"))
    columns = [name for name in shown if any(run.final(name) is not None for run in (*running, *ranked))]
    table.add_column("run", min_width=14, vertical="bottom")
    table.add_column("", no_wrap=True)
    for heading in ("update", *(shown[name] for name in columns), "left"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    names = _short([run.name for run in runs])
    for run in (*running, *ranked):
        numbers = ["" if (value := run.final(name)) is None else f"{value:.3f}" for name in columns]
        state = run.state if run.values or run.state != "running" else "starting"
        update = f"{run.step}" + ("" if run.planned is None else f"/{run.planned}")
        remaining = "" if run.state != "running" or run.left is None else duration(run.left)
        best = bool(ranked) and run is ranked[0]
        table.add_row(_cut(names[run.name]), state, update, *numbers, remaining, style="bold" if best else None)
    trouble = [
        _cut(f"failed  {names[run.name]}: {one_line(' '.join(run.reason.split()))}", style="red") for run in failed
    ]
    return Group(table, *trouble, _cut(_counts(by_state, len(ranked), goal, waiting, seconds)))


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names without the sections of their keys, where all can be told apart so: ``beta=0.1`` for ``loss.beta=0.1``."""
    short = [re.sub(r"[\w/+.]+\.(?=\w+=)", "", name) for name in names]
    return dict(zip(names, short if len(set(short)) == len(set(names)) else names, strict=True))


def _cut(text: str, style: str = "") -> Text:
    """One line, however long it is."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _counts(by_state: dict[str, list[Watched]], ranked: int, goal: Goal, waiting: int, seconds: float | None) -> str:
    """How many there are of each, and how long all of it may take yet."""
    parts = [f"{len(runs)} {state}" for state, runs in by_state.items() if runs]
    parts += [f"{waiting} waiting"] if waiting else []
    text = ", ".join(parts)
    if seconds is not None and (waiting or by_state["running"]):
        text += f"; about {duration(seconds)} left"
    if ranked:
        text += f"; the best by {goal.metric} first" + (
            f", {ranked} of {done} shown" if (done := len(by_state["done"])) > ranked else ""
        )
    return text
