"""Run folders as they are found: finished, cut off, or damaged. Nothing is written here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from dpo_cli.bounded import is_endless
from dpo_cli.errors import DpoError
from dpo_cli.run_folder import from_json, is_alive, read, shaped

_PARTS = ("run.json", "config.yaml", "metrics.jsonl")
_DEEPEST = 4
"""Levels of folders that are searched for runs."""
_SILENT_SECONDS = 600.0
"""A run on another machine that has written nothing for so long is taken for dead."""

_SURELY_DEAD_SECONDS = 86_400.0
"""The same, before anything of it is removed."""

_CONFIG: dict[str, Any] = {
    **{name: {} for name in ("loss", "optim", "data", "reference", "train", "eval", "engine", "launch", "tracker")},
    "model": {"adapter": {}},
}
"""What is a mapping in ``config.yaml``."""

Word = Literal["running", "done", "preempted", "failed", "broken"]


class Series(NamedTuple):
    """One metric over a run."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    """NaN where the run had a number that was not finite."""

    def finite(self) -> Series:
        """Without what is not a number."""
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])


class Status(NamedTuple):
    """How a run stands."""

    word: Word
    why: str = ""
    """For people; may be empty."""


@dataclass(frozen=True)
class Run:
    """What a run's folder holds."""

    folder: Path
    name: str
    """Tells it from the other runs of a report."""
    config: dict[str, Any]
    record: dict[str, Any]
    """``run.json``"""
    metrics: dict[str, Series]
    samples: list[dict[str, Any]]
    """Lines of ``samples.jsonl``."""
    evaluation: dict[str, Any]
    """``eval.json``, which ``dpo eval`` writes; empty = there is none."""
    status: Status
    unread: list[str] = field(default_factory=list)
    """What could not be read, for people."""

    @property
    def step(self) -> int:
        """Updates done, as far as the metrics say."""
        return max((int(series.steps[-1]) for series in self.metrics.values() if len(series.steps)), default=0)

    @property
    def planned(self) -> int | None:
        """Updates of the whole run, where known."""
        return planned(self.record, self.config)

    def final(self, name: str) -> float | None:
        """A metric at the end: as the run recorded it, or else its newest finite value."""
        recorded = inside(self.record, "final", name)
        if isinstance(recorded, int | float) and abs(recorded) < 1e308:  # an integer may be too long for a float
            return float(recorded)
        series = self.metrics.get(name)
        values = [] if series is None else series.finite().values.tolist()
        return values[-1] if values else None


def find_runs(places: Sequence[Path], left_out: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The run folders in or below ``places``, in the order of their names.

    Args:
        places: folders.
        left_out: told of each folder that can't be looked into.

    Raises:
        DpoError: a place that is not there, or none of them holds a run.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise DpoError(f"{place}: there is no such folder; expected a run, a sweep or a folder of runs")
        runs = list(_below(place, _DEEPEST, left_out))
        if not runs:
            raise DpoError(f"{place} holds no run: expected run.json or config.yaml in it or in folders below")
        found.update(dict.fromkeys(runs))
    return list(found)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, however it went."""
    return any((folder / name).is_file() for name in _PARTS)


def _below(folder: Path, levels: int, left_out: Callable[[str], None]) -> Iterator[Path]:
    try:
        found = is_run(folder)
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:  # of somebody who lets nobody else read it
        left_out(f"{folder} can't be looked into ({error.strerror}): left out")
        return
    if found:
        yield folder
    elif levels:
        for path in inner:
            yield from _below(path, levels - 1, left_out)


def names_of(folders: Sequence[Path]) -> list[str]:
    """A short name for each, different for different folders: their own, with as much of the path as it takes."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All of each run."""
    return [read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def read_run(folder: Path, name: str | None = None) -> Run:
    """All of a run; what can't be read is said in ``unread``, and the rest is there."""
    unread: list[str] = []
    record = read(folder, unread)
    return Run(
        folder=folder,
        name=name or folder.name,
        config=read_config_file(folder / "config.yaml", unread),
        record=record,
        metrics=_series(_lines(folder / "metrics.jsonl", unread)),
        samples=list(_lines(folder / "samples.jsonl", unread)),
        evaluation=_json(folder / "eval.json", unread),
        status=status_of(folder, record),
        unread=unread,
    )


def read_config_file(path: Path, unread: list[str] | None = None) -> dict[str, Any]:
    """A resolved configuration as plain values; nothing in it is run. Empty if it can't be read.

    Args:
        path: of the file.
        unread: takes what could not be read, for people.
    """
    if not path.exists():
        return {}
    values = None
    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        if path.is_file():
            # The fast reader is a part of PyYAML that some builds lack.
            values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if isinstance(values, dict) and not is_endless(values, _inner):
        return shaped(values, _CONFIG, f"{path.name}: ", unread)
    if unread is not None:
        unread.append(f"{path.name} could not be read")
    return {}


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def status_of(folder: Path, record: dict[str, Any], now: float | None = None) -> Status:
    """How a run stands, as far as its folder tells.

    Args:
        folder: of the run.
        record: its ``run.json``; empty if it can't be read.
        now: seconds since 1970.
    """
    word, error = record.get("status"), str(record.get("error") or "")
    if word == "done":
        return Status("done", "" if (folder / "final").is_dir() else "final/ has been removed")
    if word == "preempted":
        return Status("preempted", "the same command with resume=auto goes on")
    if word == "failed":
        return Status("failed", " ".join(error.split()))
    if word != "running":
        return Status("broken", "run.json is missing or damaged" if not record else f"run.json says status {word!r}")
    alive = is_alive(record.get("process"))
    seconds = (time.time() if now is None else now) - last_change(folder)
    if alive or (alive is None and seconds < _SILENT_SECONDS):
        return Status("running")
    gone = "its process is gone" if alive is False else f"nothing was written for {duration(seconds)}"
    return Status("broken", f"{gone}; the same command with resume=auto goes on")


def may_be_running(folder: Path, now: float | None = None) -> bool:
    """Whether something might still write into a run's folder: it has not ended, and is not known to be dead. What runs
    on another machine is taken for dead after a day without a sign."""
    record = read(folder)
    if record.get("status") in ("done", "preempted", "failed"):
        return False
    alive = is_alive(record.get("process"))
    silent = (time.time() if now is None else now) - last_change(folder)
    return silent < _SURELY_DEAD_SECONDS if alive is None else alive


def last_change(folder: Path) -> float:
    """When a run last wrote something, in seconds since 1970."""
    places = [folder / name for name in (*_PARTS, "samples.jsonl", "checkpoints", "final")]
    times = []
    for place in places:
        with suppress(FileNotFoundError):  # a run that is at work replaces its files
            times.append(place.stat().st_mtime)
    return max(times, default=folder.stat().st_mtime)


def inside(values: Any, *names: str) -> Any:
    """What stands in nested mappings under these names; None where a step leads nowhere, whatever a file made of it."""
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def planned(record: dict[str, Any], config: dict[str, Any]) -> int | None:
    """Updates of the whole run, where known."""
    for value in (record.get("planned"), record.get("updates"), inside(config, "train", "max_steps")):
        if isinstance(value, int):
            return value
    return None


def newest_step(folder: Path) -> int:
    """Updates done by the last line of metrics, found without reading the others."""
    path = folder / "metrics.jsonl"
    lines: list[bytes] = []
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
                lines = file.read().splitlines()
    # The last may be half a line, of a run that was killed.
    return next((values["step"] for line in reversed(lines) if (values := _line(line)) is not None), 0)


def some_metrics(folder: Path, name: str) -> Series | None:
    """One metric of a run; lines without it are not looked into."""
    word, path = json.dumps(name), folder / "metrics.jsonl"
    lines: list[str] = []
    with suppress(OSError):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                lines = [line for line in file if word in line]
    return _series(_parsed(lines, [])).get(name)


def size_of(folder: Path) -> int:
    """Bytes of everything in a folder; links count as themselves."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # a run that is at work removes old checkpoints
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def duration(seconds: float) -> str:
    """A length of time in its largest unit: ``3 h``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def byte_size(count: float) -> str:
    """``1.2 GiB``"""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _json(path: Path, unread: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    values = None
    with suppress(OSError):
        values = from_json(path.read_bytes()) if path.is_file() else None
    if isinstance(values, dict):
        return values
    unread.append(f"{path.name} could not be read")
    return {}


def _lines(path: Path, unread: list[str]) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    if not path.is_file():
        unread.append(f"{path.name} could not be read")
        return
    bad: list[int] = []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from _parsed(file, bad)
    except OSError as error:
        unread.append(f"{path.name} could not be read ({error.strerror})")
    if bad:
        unread.append(f"{path.name}: {len(bad)} line{'s' * (len(bad) > 1)} could not be read, the first is {bad[0]}")


def _parsed(lines: Iterable[str], bad: list[int]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if (values := _line(line)) is None:
            bad.append(number)
        else:
            yield values


def _line(text: str | bytes) -> dict[str, Any] | None:
    """A line of metrics or samples; None if it is none."""
    values = from_json(text)
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    numbers = [value for value in values.values() if isinstance(value, int)]
    return values if all(abs(number) < 1 << 63 for number in numbers) else None


def _series(lines: Iterable[dict[str, Any]]) -> dict[str, Series]:
    """Metrics by name, in the order of their steps. Most lines have the same names and are taken by columns: there may
    be a million of them."""
    alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for line in lines:
        alike.setdefault(tuple(line), []).append(tuple(line.values()))
    parts: dict[str, list[Series]] = {}
    for names, rows in alike.items():
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        steps = np.array(columns.pop("step"), dtype=np.int64)
        for name, values in columns.items():
            if all(value is None or isinstance(value, int | float) for value in values):
                parts.setdefault(name, []).append(Series(steps, np.array(values, dtype=np.float64)))  # None is NaN
    return {name: _in_order(each) for name, each in parts.items()}


def _in_order(parts: Sequence[Series]) -> Series:
    steps = np.concatenate([part.steps for part in parts])
    order = np.argsort(steps, kind="stable")
    return Series(steps[order], np.concatenate([part.values for part in parts])[order])
