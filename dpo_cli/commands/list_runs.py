"""``dpo runs``: which runs there are and how they stand, what differs between two, and old checkpoints removed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo_cli.commands.arguments import Parser
from dpo_cli.errors import DpoError, one_line, printable
from dpo_cli.metric_names import lower_is_better
from dpo_cli.reporting.compare import differences
from dpo_cli.reporting.runs import (
    byte_size,
    duration,
    find_runs,
    inside,
    last_change,
    may_be_running,
    names_of,
    newest_step,
    planned,
    read_config_file,
    size_of,
    some_metrics,
    status_of,
)
from dpo_cli.run_folder import read

_METRICS = ("eval/rewards/accuracies", "rewards/accuracies", "eval/loss", "loss")
"""By which runs are listed: the first that any of them has."""


def run(words: Sequence[str]) -> None:
    """List, compare or clean, by the first word.

    Raises:
        DpoError: there are no runs, or what the subcommand refuses.
    """
    match words[:1]:
        case ["diff"]:
            _diff(words[1:])
        case ["clean"]:
            _clean(words[1:])
        case _:
            _list(words)


@dataclass(frozen=True)
class Listed:
    """A line of the list."""

    run: str
    folder: str
    status: str
    why: str
    updates: int
    planned: int | None
    loss: str
    metric: str | None
    best: float | None
    """The best value of the metric over the whole run."""
    best_update: int | None
    changed: float
    """When it last wrote something, in seconds since 1970."""
    bytes: int


def listed(folders: Sequence[Path], metric: str | None = None) -> list[Listed]:
    """A line per run.

    Raises:
        DpoError: no run has the metric that is asked for.
    """
    found: dict[Path, Any] = {}
    names = _METRICS if metric is None else (metric,)
    for name in names:
        found = {folder: series for folder in folders if (series := some_metrics(folder, name)) is not None}
        if found:
            metric = name
            break
    if metric is not None and not found:
        raise DpoError(f"--metric {metric}: no run has it")
    return [
        _line(folder, name, metric, found.get(folder)) for folder, name in zip(folders, names_of(folders), strict=True)
    ]


def _line(folder: Path, name: str, metric: str | None, series: Any) -> Listed:
    record, config = read(folder, []), read_config_file(folder / "config.yaml")
    status = status_of(folder, record)
    best = None if series is None else series.finite()
    place = None
    if best is not None and len(best.values) and metric is not None:
        place = int(best.values.argmin() if lower_is_better(metric) else best.values.argmax())
    return Listed(
        run=name,
        folder=str(folder),
        status=status.word,
        why=status.why,
        updates=newest_step(folder),
        planned=planned(record, config),
        loss=str(inside(config, "loss", "name") or ""),
        metric=metric,
        best=None if best is None or place is None else float(best.values[place]),
        best_update=None if best is None or place is None else int(best.steps[place]),
        changed=last_change(folder),
        bytes=size_of(folder),
    )


_STYLES = {"running": "cyan", "done": "green", "preempted": "yellow", "failed": "red", "broken": "red"}


def _list(words: Sequence[str]) -> None:
    arguments = _list_parser().parse_args(list(words))
    places = arguments.folders or [Path("runs")]
    if not arguments.folders and not places[0].is_dir():
        raise DpoError("there is no folder runs here; name one: dpo runs FOLDER")
    lines = listed(find_runs(places, note), arguments.metric)
    if arguments.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    metric = next((line.metric for line in lines if line.metric), None)
    title = f"{len(lines)} run{'s' * (len(lines) > 1)}" + (f"; best: {metric} @ its update" if metric else "")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "status", "updates", "loss", "best", "age", "size"):
        left = heading in ("run", "status", "loss")
        table.add_column(
            heading, justify="left" if left else "right", overflow="fold", no_wrap=heading in ("status", "age", "size")
        )
    for line in lines:
        total = "" if line.planned in (None, line.updates) else f"/{line.planned:,}"
        best = "" if line.best is None else f"{line.best:.4g} @{line.best_update:,}"
        table.add_row(
            Text(one_line(line.run)),
            Text(line.status, style=_STYLES[line.status]),
            f"{line.updates:,}{total}",
            Text(one_line(line.loss)),
            best,
            duration(time.time() - line.changed),
            byte_size(line.bytes),
        )
    console = _console()
    console.print(table)
    for line in lines:
        if line.why and line.status in ("failed", "broken"):
            console.print(Text(f"{one_line(line.run)}: {one_line(line.why, 200)}"), style="dim")


def _diff(words: Sequence[str]) -> None:
    arguments = _diff_parser().parse_args(list(words))
    places = (arguments.first, arguments.second)
    configs = [_config(place) for place in places]
    found = differences(configs)
    if arguments.json:
        print(json.dumps({key: dict(zip("ab", values, strict=True)) for key, values in found.items()}, indent=2))
        return
    if not found:
        print("the same, but for run_dir, resume and tracker, which are not compared")
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("key", *names_of([place.absolute() for place in places])):
        table.add_column(Text(one_line(heading)), overflow="fold")
    for key, values in found.items():
        table.add_row(Text(key), *(Text(one_line(value)) for value in values))
    _console().print(table)


def _config(place: Path) -> dict[str, Any]:
    file = place / "config.yaml" if place.is_dir() else place
    config = read_config_file(file)
    if not config:
        raise DpoError(f"{place}: expected a run's folder or its config.yaml, and {file} is not there or is damaged")
    return config


@dataclass(frozen=True)
class Cleaning:
    """What would be, or was, removed of one run."""

    folder: Path
    remove: tuple[Path, ...]
    bytes: int
    kept: str
    """Why the rest stays, for people."""


def plan_cleaning(folder: Path, keep: int) -> Cleaning:
    """Which checkpoints of a run can go: all but the newest ``keep`` and the best, once the newest has proved whole.

    Damaged ones are neither counted nor removed: somebody may want to look at them.
    """
    from dpo_cli.errors import CheckpointError
    from dpo_cli.training import checkpoint

    folders = checkpoint.folders(folder / "checkpoints")
    if len(folders) <= keep:
        return Cleaning(folder, (), 0, f"{len(folders)} checkpoint{'s' * (len(folders) != 1)}")
    if may_be_running(folder):
        return Cleaning(folder, (), 0, "it may be running")
    try:
        newest = checkpoint.read(folders[-1])
    except CheckpointError as error:
        return Cleaning(folder, (), 0, f"its newest checkpoint is damaged ({error})")
    best = newest.state.best.get("step")
    old = [each for each in folders[:-keep] if each.name != f"step-{best}"]
    kept = f"the newest {keep}" + (f" and the best, of update {best}" if best is not None else "")
    return Cleaning(folder, tuple(old), sum(size_of(each) for each in old), kept)


def _clean(words: Sequence[str]) -> None:
    arguments = _clean_parser().parse_args(list(words))
    plans = [plan_cleaning(folder, arguments.keep) for folder in find_runs([arguments.folder], note)]
    for plan in plans:
        said = ", ".join(each.name for each in plan.remove) or "nothing"
        size = f" ({byte_size(plan.bytes)})" if plan.remove else ""
        print(f"{plan.folder}: remove {said}{size}; keep {plan.kept}" if plan.remove else f"{plan.folder}: {plan.kept}")
    total, count = sum(plan.bytes for plan in plans), sum(len(plan.remove) for plan in plans)
    if not count:
        print("nothing to remove")
    elif arguments.dry_run:
        print(f"{count} checkpoints, {byte_size(total)}, would be removed")
    elif arguments.yes or _agreed(f"Remove {count} checkpoints, {byte_size(total)}? [y/N] "):
        freed = sum(_remove(plan) for plan in plans)
        print(f"{byte_size(freed)} freed")
    else:
        print("nothing was removed")


def _remove(plan: Cleaning) -> int:
    """Remove what was planned, unless the run has come back to life since; returns the bytes freed."""
    from dpo_cli.training import checkpoint

    if plan.remove and may_be_running(plan.folder):
        print(f"{plan.folder}: it may be running by now; nothing of it was removed")
        return 0
    freed = 0
    for each in plan.remove:
        size = size_of(each)
        checkpoint.remove(each)
        freed += size
    return freed


def _agreed(question: str) -> bool:
    """A person's yes.

    Raises:
        DpoError: nobody is there to ask.
    """
    if not sys.stdin or not sys.stdin.isatty():
        raise DpoError("runs clean: nobody is there to ask; say --yes, or --dry-run to look")
    return input(question).strip().lower() in ("y", "yes")


def note(text: str) -> None:
    """A line for people about what is not in the list."""
    print(f"dpo: {printable(text)}", file=sys.stderr)


def _console() -> Any:
    from dpo_cli.tracking.console import Terminal

    # Where nobody watches, lines may be as long as they need to be.
    return Terminal(width=None if sys.stdout.isatty() else 160)


def _list_parser() -> Parser:
    parser = Parser(
        prog="dpo runs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="List the runs below a folder with how they stand: running, done, preempted, failed, or broken\n"
        "(killed, or damaged).\n\n"
        "  dpo runs diff A B         what differs between two runs' configurations\n"
        "  dpo runs clean FOLDER     remove old checkpoints",
    )
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="FOLDER", help="runs, sweeps, or folders of them (default: runs)"
    )
    parser.add_argument("--metric", metavar="NAME", help="whose best value is shown (default: held-out accuracy)")
    parser.add_argument("--json", action="store_true", help="the list as JSON")
    return parser


def _diff_parser() -> Parser:
    parser = Parser(prog="dpo runs diff", description="Show the settings that are not the same in two runs.")
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, metavar="RUN", help="a run's folder or its config.yaml")
    parser.add_argument("--json", action="store_true", help="the differences as JSON")
    return parser


def _clean_parser() -> Parser:
    parser = Parser(
        prog="dpo runs clean",
        description="Remove old checkpoints of the runs below a folder. The newest ones and the best by "
        "train.keep_best stay, nothing is removed unless the newest has proved whole by its hashes, and runs that may "
        "be running are left alone. final/ is never touched.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run, a sweep or a folder of runs")
    parser.add_argument(
        "--keep", type=_two_or_more, default=2, metavar="N", help="newest checkpoints to keep (default 2)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="don't ask")
    return parser


def _two_or_more(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 2")
    return int(text)
