"""What a tracker has been sent of a run: ``trackers/<name>.json``. A tracker reads the run's own files, so that what it
has not got is still there, and can be sent later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpo_cli.run_folder import write_json


@dataclass
class Progress:
    """Of one tracker and one run."""

    run_id: str | None = None
    """The tracker's own name for the run, by which it is gone on with."""
    where: str | None = None
    """Where people find it: a URL or a folder."""
    offline: bool = False
    """Whether it was sent nowhere but to the tracker's own files here."""
    finished: bool = False
    """Whether the tracker said it has everything that it was sent."""
    step: int = -1
    """Of the newest line of metrics sent."""
    lines: list[list[str]] = field(default_factory=list)
    """The metrics' names in each line of that step: several lines may have one step."""
    sampled: int = -1
    """Step of the newest samples sent."""
    alerts: int = 0
    """How many were sent."""

    def has(self, step: int, names: Iterable[str]) -> bool:
        """Whether a line has been sent. A run that goes on writes lines of later steps again, and they are the same."""
        return step < self.step or (step == self.step and sorted(names) in self.lines)

    def add(self, step: int, names: Iterable[str]) -> None:
        """A line has been sent."""
        if step > self.step:
            self.step, self.lines = step, []
        self.lines.append(sorted(names))


def folder_of(run_dir: Path) -> Path:
    """Where trackers keep what they know of a run."""
    return run_dir / "trackers"


def load(run_dir: Path, name: str) -> Progress:
    """A tracker's progress; at the beginning where there is none."""
    try:
        return Progress(**json.loads((folder_of(run_dir) / f"{name}.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return Progress()


def save(run_dir: Path, name: str, progress: Progress) -> None:
    """All of it or nothing."""
    write_json(folder_of(run_dir) / f"{name}.json", asdict(progress))


def forget(run_dir: Path, name: str) -> None:
    """The run starts anew, for the tracker as well."""
    (folder_of(run_dir) / f"{name}.json").unlink(missing_ok=True)


def unsent(run_dir: Path, progress: Progress) -> int:
    """Lines of metrics that a tracker has not been sent."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            return sum(not progress.has(step, values) for step, values in parsed(file))
    except FileNotFoundError:
        return 0


def parsed(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The step and the values of each line; what is no object with a step, as half a line is, is left out."""
    for line in lines:
        try:
            values = json.loads(line)
            yield int(values.pop("step")), values
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Without what was not a number."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
