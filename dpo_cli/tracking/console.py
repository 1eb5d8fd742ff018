"""What a person sees: phases with rate and time left, lines of metrics, everything on stderr but the result.

In a terminal a phase is a live bar; elsewhere it is a plain line now and then, so that a log file stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dpo_cli import liveness
from dpo_cli.errors import printable

_SECONDS_BETWEEN_LINES = 10.0


class Terminal(RichConsole):
    """rich's console, for text that strangers may have written: it is never markup, and does nothing to a terminal."""

    def __init__(self, **options: Any) -> None:
        """``options``: as of rich's own."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text that is printed, and every one in a table, comes through here."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """As for whatever else is printed; rich would end the process."""
        raise BrokenPipeError


class Console:
    """Progress and messages of one process; silent on all ranks but the first."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self._err = Terminal(stderr=True, quiet=silent, soft_wrap=True)
        self._out = Terminal(quiet=silent, soft_wrap=True)

    @property
    def live(self) -> bool:
        """Whether somebody watches a terminal."""
        return self._err.is_terminal

    def say(self, message: str) -> None:
        """A line about what is going on."""
        self._err.print(message)

    def warn(self, message: str) -> None:
        """A line that should be seen."""
        self._err.print(f"warning: {message}", style="yellow")

    def result(self, message: str) -> None:
        """A line of the result, on stdout."""
        self._out.print(message)

    def table(self, table: Table) -> None:
        """A table of the result, on stdout."""
        self._out.print(table)

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[..., None]]:
        """A phase of ``total`` units (None = not known). Yields ``advance(units=1, note="")``."""
        with self._bar(name, total, unit) if self.live else self._lines(name, total, unit) as show:

            def advance(units: int = 1, note: str | None = None) -> None:
                liveness.beat()
                show(units, note)

            yield advance

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
        start = time.monotonic()
        done = 0
        amount = [] if total is None else [BarColumn(bar_width=24), MofNCompleteColumn()]
        clock = TimeElapsedColumn() if total is None else TimeRemainingColumn(elapsed_when_finished=True)
        columns = [SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False), *amount]
        details = [
            TextColumn("{task.fields[rate]}", markup=False),
            clock,
            TextColumn("{task.fields[note]}", markup=False),
        ]
        with Progress(*columns, *details, console=self._err) as progress:
            task = progress.add_task(name, total=total, note="", rate=unit)

            def advance(units: int = 1, note: str | None = None) -> None:
                nonlocal done
                done += units
                before = progress.tasks[0].fields["note"]
                rate = f"{'' if total else f'{done:,} '}{unit}, {_rate(done, start)}/s"
                progress.update(task, advance=units, rate=rate, note=before if note is None else note)

            yield advance
            progress.update(task, total=max(done, 1), completed=max(done, 1))

    @contextmanager
    def _lines(self, name: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
        start = said = time.monotonic()
        done = 0

        def advance(units: int = 1, note: str | None = None) -> None:
            nonlocal done, said
            done += units
            now = time.monotonic()
            if now - said >= _SECONDS_BETWEEN_LINES:
                said = now
                left = "" if not total else f", {_duration((now - start) / done * (total - done))} left"
                self.say(f"{name}: {done}{f'/{total}' if total else ''} {unit}, {_rate(done, start)}/s{left}")

        yield advance
        seconds = time.monotonic() - start
        amount = f" {done} {unit.removesuffix('s') if done == 1 else unit}," if done else ""
        self.say(f"{name}:{amount} {_duration(seconds)}")


def _rate(done: float, start: float) -> str:
    rate = done / max(time.monotonic() - start, 1e-9)
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{seconds:.1f} s"
