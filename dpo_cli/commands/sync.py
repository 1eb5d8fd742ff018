"""``dpo sync``: what trackers have not got of runs is sent to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_cli.commands.arguments import Parser
from dpo_cli.commands.public import without_signatures
from dpo_cli.errors import DpoError, StorageError
from dpo_cli.reporting.runs import Run, find_runs, may_be_running, read_run
from dpo_cli.tracking import progress
from dpo_cli.tracking.backends import KINDS
from dpo_cli.tracking.console import Console
from dpo_cli.tracking.trackers import Tracker, check_usable, finish, wandb_mode

_DAY = 86_400.0


def run(words: Sequence[str]) -> None:
    """Send runs to trackers.

    Raises:
        DpoError: a run that is still going on, or a tracker that can't be used.
        StorageError: a tracker that did not take everything.
    """
    arguments = _parser().parse_args(list(words))
    runs = [read_run(folder) for folder in find_runs(arguments.runs)]
    jobs = [(run, name) for run in runs for name in (arguments.to or _configured(run))]
    check_usable(sorted({name for _, name in jobs}))
    for run in runs:
        if may_be_running(run.folder):
            raise DpoError(f"{run.folder} is still running; its trackers follow it themselves")
    console = Console()
    failed = [str(run.folder) for run, name in jobs if not _send(run, name, arguments.anew, arguments.wait, console)]
    if failed:
        raise StorageError(f"not everything was sent of {', '.join(failed)}; the same command tries again")
    if not jobs:
        console.result("these runs had no tracker: name one with --to")


def _configured(run: Run) -> list[str]:
    """The trackers that a run was told to use; Weights & Biases, if that one was off."""
    tracker = run.config.get("tracker") or {}
    return [str(name) for name in (tracker.get("name"), *(tracker.get("also") or [])) if name in KINDS]


def _send(run: Run, name: str, anew: bool, seconds: float, console: Console) -> bool:
    if anew:
        progress.forget(run.folder, name)
    before = progress.load(run.folder, name)
    lines = progress.unsent(run.folder, progress.Progress() if before.offline else before)
    if before.finished and not before.offline and not lines:
        console.result(f"{run.folder}: {KINDS[name].title} has everything, at {before.where}")
        return True
    settings = run.config.get("tracker") or {}
    mode = wandb_mode("auto") if name == "wandb" else "online"
    tracker = Tracker(
        name,
        run.folder,
        project=str(settings.get("project") or "dpo"),
        run_name=str(settings.get("run_name") or run.folder.resolve().name),
        group=settings.get("group"),
        config=without_signatures(run.config),
        mode="online" if mode == "disabled" else mode,
        say=lambda text: None,
        warn=console.warn,
    )
    code = run.record.get("exit_code")
    if not finish([tracker], int(code) if isinstance(code, int) else 255, seconds=seconds, warn=console.warn):
        return False
    after = progress.load(run.folder, name)
    console.result(f"{run.folder}: {lines} lines of metrics sent to {KINDS[name].title}, {after.where}")
    return True


def _parser() -> Parser:
    parser = Parser(
        prog="dpo sync",
        description="Send runs to trackers: runs that were offline, that a tracker did not "
        "take all of, or that had none. "
        "What a tracker has already is not sent again.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run, a sweep or a folder of runs")
    parser.add_argument(
        "--to", action="append", choices=list(KINDS), help="a tracker (default: those that the run was told to use)"
    )
    parser.add_argument("--anew", action="store_true", help="as a new run of the tracker, and all of it")
    parser.add_argument(
        "--wait", type=float, default=_DAY, metavar="SECONDS", help="for each run, before it counts as failed"
    )
    return parser
