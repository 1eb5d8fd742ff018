"""Sweeps: ``dpo train -m loss.beta=0.05,0.1``. Hydra says which points, or Optuna (``smart_sweep.py``); this runs them,
one after another or several at a time, and says how they went.

A sweep's folder follows from what was asked, so the same command again finds what is done and does only the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.table import Table

from dpo_cli import metric_names
from dpo_cli.config import TrainConfig
from dpo_cli.config_launch import LocalConfig, SlurmConfig
from dpo_cli.config_losses import SumConfig
from dpo_cli.errors import ConfigError, DpoError, ExitCode, Preempted, one_line
from dpo_cli.launch import devices
from dpo_cli.launchers import slurm
from dpo_cli.launchers.apart import Apart, passing_on
from dpo_cli.launchers.slurm_jobs import Submitted
from dpo_cli.overrides import apart
from dpo_cli.reporting.compare import Goal, goal_of, verdict
from dpo_cli.reporting.runs import Run, duration, is_run, read_config_file, read_runs
from dpo_cli.run_folder import read
from dpo_cli.sweep_view import Screen, State
from dpo_cli.tracking.console import Terminal

# Words of the command line that don't change what is run.
_WITHOUT_EFFECT = (
    *("run_dir=", "resume=", "resume_force=", "tracker.", "launch"),
    *("sweep.parallel=", "sweep.trials=", "sweep.report="),
)
_WITHOUT_EFFECT_ON_GRIDS = ("sweep.metric=", "sweep.direction=")
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Point:
    """A point of a sweep, which is a run."""

    name: str
    config: TrainConfig
    number: int = 0
    """Of a smart sweep's trial."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(str(self.config.run_dir))


class Points(Protocol):
    """Where points come from, and who hears how they went."""

    learns: bool
    """Whether the next point follows from how runs went, so that jobs of Slurm's are waited for as well."""

    def draw(self) -> Point | None:
        """The next point; None = there is none any more.

        Raises:
            ConfigError: if the next one's configuration is wrong; the one after it may be right.
        """

    def left(self) -> int:
        """How many points there are yet."""

    def is_hopeless(self, point: Point) -> bool:
        """Whether a run on its way is to be stopped for good. It is asked now and then."""

    def ended(self, point: Point, exit_code: int) -> None:
        """A run has ended."""


class Grid:
    """All points that Hydra's sweeper made of the command line."""

    learns = False

    def __init__(self) -> None:
        self.points: list[Point] = []

    def draw(self) -> Point | None:
        """The next in order."""
        return self.points.pop(0) if self.points else None

    def left(self) -> int:
        """Those not drawn."""
        return len(self.points)

    def is_hopeless(self, point: Point) -> bool:
        """All are wanted."""
        return False

    def ended(self, point: Point, exit_code: int) -> None:
        """Nothing follows from it."""


@dataclass(frozen=True)
class Job:
    """One point of a sweep, run or found done."""

    name: str
    run_dir: Path
    outcome: str
    exit_code: int


@dataclass(frozen=True)
class _Running:
    point: Point
    job: Apart | Submitted
    slot: int
    """Its share of this machine."""
    stopped: list[bool]
    """Not empty: it was found hopeless."""


class Sweep:
    """The jobs of one command line."""

    def __init__(self, words: Sequence[str]) -> None:
        """
        Args:
            words: the command line's, after ``dpo train``.

        Raises:
            DpoError: if they can't be read.
        """
        try:
            overrides = OverridesParser.create().parse_overrides(apart(words)[1])
        except HydraException as error:
            raise DpoError(" ".join(str(error).split())) from None
        self.ranges = [override.input_line for override in overrides if override.is_interval_sweep()]
        """Those without points, from which only a smart sweep can draw."""
        self._fixed = {
            override.get_key_element().lstrip("+") for override in overrides if not override.is_sweep_override()
        }
        values = {override.get_key_element(): override.value() for override in overrides}
        what = sorted(override.input_line for override in overrides)
        without_effect = _WITHOUT_EFFECT if "sweep.sampler" in values else (*_WITHOUT_EFFECT, *_WITHOUT_EFFECT_ON_GRIDS)
        what = [word for word in what if not word.startswith(without_effect)]
        digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", str(values.get("+experiment", "train")))
        self.folder = Path(str(values.get("run_dir") or Path("runs") / f"sweep-{name}-{digest}"))
        self.grid = Grid()
        self._goal = Goal(None)
        """By what the best run is chosen."""
        self._report = True
        """Whether one is written at the end."""
        self._jobs: list[Job] = []
        """As they ended."""
        self._begun: dict[str, int] = {}
        """Which began when, by name."""
        self._screen = Screen(f"{self.folder}; the output of each run is in its .log there")
        self._shares: list[list[str]] = []
        """Of this machine's GPUs, by slot."""

    def go_by(self, config: TrainConfig) -> None:
        """What a point says of the sweep as a whole.

        Raises:
            DpoError: if the best is to be chosen by what the point would not measure.
        """
        settings = config.sweep
        metric = settings.metric if settings.sampler is None else settings.goal
        self._goal = goal_of({"metric": metric, "direction": settings.direction})
        self._report = settings.report
        if metric is not None and (why := _not_measured(metric, config)):
            raise DpoError(f"sweep.metric={metric} {why}")

    def add(self, config: TrainConfig, overrides: Sequence[str]) -> None:
        """A point of the grid.

        Args:
            config: of the job.
            overrides: its own, the swept values among them.
        """
        self.grid.points.append(self.point(config, self._name(overrides)))

    def point(self, config: TrainConfig, name: str, number: int = 0) -> Point:
        """A point in this sweep's folder, which goes on where it stopped."""
        tracker = config.tracker.model_copy(
            update={"group": config.tracker.group or self.folder.name, "run_name": name}
        )
        changes = {"run_dir": str(self.folder / name), "resume": "auto", "tracker": tracker}
        return Point(name, config.model_copy(update=changes), number)

    def refuse(self, overrides: Sequence[str], error: DpoError) -> None:
        """A point whose configuration is wrong: said, counted as failed, and the sweep goes on."""
        self._refuse(self._name(overrides), error)

    def _note(self, text: str) -> None:
        """A line about what a live table shows as well."""
        if not self._screen.live:
            _say(text)

    def _refuse(self, name: str, error: DpoError) -> None:
        _say(f"{name}: failed\ndpo: {error}")
        self._screen.ended(name, self.folder / name, "failed", str(error))
        self._jobs.append(Job(name, self.folder / name, f"failed ({int(error.exit_code)})", int(error.exit_code)))

    def _name(self, overrides: Sequence[str]) -> str:
        words = [override.lstrip("+") for override in overrides]
        swept = [word for word in words if word.partition("=")[0] not in self._fixed]
        return re.sub(r"[^\w.,=+-]+", "_", ",".join(swept)) or "job"

    def run(self, points: Points, parallel: int, *, here: bool = True) -> None:
        """Run points in processes of their own, until there are no more. What fails is said, and the sweep goes on.

        Args:
            points: of ``folder``.
            parallel: how many at a time.
            here: whether on this machine, of which each has a share then.

        Raises:
            Preempted: if a signal came, or stopped a job: somebody wants all of it to end.
        """
        self._shares = _shares(parallel) if here else [[] for _ in range(parallel)]
        with self._screen:
            self._run(points, parallel)

    def _run(self, points: Points, parallel: int) -> None:
        running: list[_Running] = []
        processes: list[subprocess.Popen[bytes]] = []
        more, stopping, left_alone = True, False, ""
        with passing_on(processes) as signals:
            while more or running:
                if len(running) < parallel and more and not (stopping or signals):
                    more = self._begin_next(points, running, parallel)
                    processes[:] = [one.job.process for one in running if isinstance(one.job, Apart)]
                    continue
                if stopping or signals:
                    more, left_alone = False, left_alone or _leave_to_slurm(running)
                for one in list(running):
                    stopping |= self._look_after(one, points, running)
                if self._screen.is_due():
                    self._screen.show(self._goal, points.left(), self._each(), parallel)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        if stopping or signals:
            raise Preempted(f"the sweep was stopped{left_alone}; the same command goes on from here")

    def _begin_next(self, points: Points, running: list[_Running], parallel: int) -> bool:
        """Start the next point, unless it is done already; False = there is none."""
        try:
            point = points.draw()
        except ConfigError as error:
            self._refuse("a point", error)
            return True
        if point is None:
            return False
        name, run_dir = point.name, point.run_dir
        self._begun.setdefault(name, len(self._begun))
        if read(run_dir).get("status") == "done":
            if _settings(run_dir) != _comparable(point.config.model_dump(mode="json")):
                message = (
                    f"{run_dir} holds a finished run of another configuration: remove it, or sweep in another run_dir"
                )
                self._refuse(name, DpoError(message))
                points.ended(point, int(ExitCode.USAGE))
                return True
            self._note(f"{name}: done before, in {run_dir}")
            self._jobs.append(Job(name, run_dir, "done before", 0))
            self._screen.ended(name, run_dir, "done")
            points.ended(point, 0)
            return True
        number = len(self._jobs) + len(running) + 1
        if isinstance(point.config.launch, SlurmConfig):
            if not points.learns:
                self._submit(point, number)
                return True
            submitted = Submitted(point.config)
            self._note(f"{name}: job {number}, Slurm's {submitted.number}, in {run_dir}")
            self._screen.began(name, run_dir)
            running.append(_Running(point, submitted, 0, []))
            return True
        slot = next(slot for slot in range(parallel) if slot not in {one.slot for one in running})
        log = None
        if parallel > 1 or self._screen.live:  # output of several at once, or through a table, is no use to anybody
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self.folder / f"{name}.log"
        self._note(f"{name}: job {number}, in {run_dir}" + ("" if log is None else f"; its output in {log}"))
        self._screen.began(name, run_dir)
        environment = {"DPO_SWEEP": "1", **self._environment(point.config, slot, parallel)}
        running.append(_Running(point, Apart("train", point.config, environment, log), slot, []))
        return True

    def _submit(self, point: Point, number: int) -> None:
        try:
            job = slurm.submit("train", point.config)
        except DpoError as error:
            self._refuse(point.name, error)
            return
        what = "written" if job.number is None else f"submitted as job {job.number}"
        _say(f"{point.name}: job {number}, {what}, in {point.run_dir}")
        self._jobs.append(Job(point.name, point.run_dir, "written" if job.number is None else f"job {job.number}", 0))

    def _environment(self, config: TrainConfig, slot: int, parallel: int) -> dict[str, str]:
        """What gives a job its share of this machine."""
        if parallel == 1:
            return {}
        count = config.launch.num_processes if isinstance(config.launch, LocalConfig) else 1
        processes = max(1, len(self._shares[slot])) if count == "auto" else count
        threads = max(1, (os.cpu_count() or 1) // (parallel * processes))
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        if self._shares[slot]:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._shares[slot])
        return environment

    def _look_after(self, one: _Running, points: Points, running: list[_Running]) -> bool:
        """See to a running job; True = it was stopped by somebody else, who wants all of it to end."""
        ended = one.job.ended()
        if ended is None:
            if not one.stopped and points.is_hopeless(one.point):
                one.stopped.append(True)
                one.job.stop()
            return False
        running.remove(one)
        name, code = one.point.name, ended.exit_code
        pruned = bool(one.stopped) and code == ExitCode.PREEMPTED
        outcome = "pruned" if pruned else f"failed ({code})" if code else "done"
        self._jobs.append(Job(name, one.point.run_dir, outcome, 0 if pruned else code))
        state: State = "done"
        if pruned:
            state = "pruned"
            self._note(f"{name}: stopped, as it does worse than half of the runs before it")
        elif not code:
            self._note(f"{name}: done{self._reached(one.point.run_dir, points.left())}")
        else:
            state = "stopped" if code == ExitCode.PREEMPTED else "failed"
            _say(ended.text or f"dpo: exit code {code}")
            _say(f"{name}: {'stopped' if code == ExitCode.PREEMPTED else f'failed with exit code {code}'}")
        self._screen.ended(name, one.point.run_dir, state, ended.text.removeprefix("dpo: ") or f"exit code {code}")
        if code != ExitCode.PREEMPTED or pruned:
            points.ended(one.point, code)
        return code == ExitCode.PREEMPTED and not pruned

    def _each(self) -> float | None:
        """Seconds that a run has taken in the mean; None = none has been done."""
        done = [read(job.run_dir).get("seconds", 0.0) for job in self._jobs if job.outcome == "done"]
        return sum(done) / len(done) if done else None

    def _reached(self, run_dir: Path, left: int) -> str:
        """What a run that has ended well reached, and how long all that is left may take."""
        final = read(run_dir).get("final") or {}
        numbers = [f"{label} {final[name]:.3f}" for name, label in _COLUMNS.items() if final.get(name) is not None]
        seconds = (self._each() or 0.0) * left / max(1, len(self._shares))
        about = f"; {left} more, about {duration(seconds)}" if left else ""
        return f", {', '.join(numbers)}{about}" if numbers else about

    def finish(self, remark: str = "") -> int:
        """Print what each job reached, and a remark; returns the exit code."""
        if not self._jobs:
            print(remark, end="\n" if remark else "")
            return int(ExitCode.DONE)
        self._jobs.sort(key=lambda job: self._begun.get(job.name, len(self._begun)))
        records = {job.name: read(job.run_dir) for job in self._jobs}
        finals: dict[str, dict[str, Any]] = {name: record.get("final", {}) for name, record in records.items()}
        held_out = any("eval/loss" in final for final in finals.values())
        headings = dict(_COLUMNS if held_out else _TRAINING_COLUMNS)
        if self._goal.metric is not None:
            headings.setdefault(self._goal.metric, self._goal.metric)
        columns = [name for name in headings if any(name in final for final in finals.values())]
        computed = {name: record.get("reference", {}).get("tokens_computed", 0) for name, record in records.items()}
        more = ["ref. tokens"] if any(computed.values()) else []
        whose = "held out" if held_out else "of the last update"
        title = f"{len(self._jobs)} runs in {self.folder}; loss, accuracy and margin {whose}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("run", "outcome", *(headings[name] for name in columns), *more, "s"):
            left = heading in ("run", "outcome")
            table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=heading != "run")
        for job in self._jobs:
            record, final = records[job.name], finals[job.name]
            values = ["" if final.get(name) is None else f"{final[name]:.3f}" for name in columns]
            values += [f"{computed[job.name]:,}"] * len(more)
            table.add_row(job.name, job.outcome, *values, f"{record.get('seconds', 0):.0f}")
        # Where nobody watches, lines may be as long as they need to be.
        Terminal(width=None if sys.stdout.isatty() else 160).print(table)
        self._say_best()
        if remark:
            print(remark)
        return next((job.exit_code for job in self._jobs if job.exit_code), int(ExitCode.DONE))

    def _say_best(self) -> None:
        """Which settings were best, and a page with more. A sweep's outcome is not changed by what goes wrong here."""
        folders = [job.run_dir for job in self._jobs if is_run(job.run_dir)]
        by_hand = f"dpo report {shlex.quote(str(self.folder))}"
        try:
            runs = read_runs(folders)
            done = [run for run in runs if run.status.word == "done"]
            metric = self._goal.metric
            if done and metric is not None and all(run.final(metric) is None for run in done):
                _say(f"sweep.metric={metric}: no run has it")
            if len(done) > 1:
                print(verdict(done, self._goal))
            if self._report and done:
                print(f"curves, reward against KL and samples in one page: {self._write_report(runs)}")
            elif runs:
                print(f"curves, reward against KL and samples in one page: {by_hand}")
        except Exception as error:  # any of the many of files and drawing
            what = one_line(f"{type(error).__name__}: {error}")
            _say(f"the report could not be written ({what}); {by_hand} tries again")

    def _write_report(self, runs: Sequence[Run]) -> Path:
        from dpo_cli.commands.report_page import write_report  # not above: most command lines have no need of it

        file = self.folder / "report.html"
        write_report(file, runs, title=self.folder.resolve().name, goal=self._goal)
        return file


# Metrics of a finished run, as columns. What was not held out is shown only where nothing was.
_COLUMNS = {
    "eval/loss": "loss",
    "eval/rewards/accuracies": "acc.",
    "eval/rewards/margins": "margin",
    "samples/true_reward": "reward",
    "samples/kl": "KL",
}
_TRAINING_COLUMNS = {"loss": "loss", "rewards/accuracies": "acc.", "rewards/margins": "margin"}


def _not_measured(metric: str, config: TrainConfig) -> str:
    """Why a point would not measure a metric; empty, if it may."""
    if metric.startswith("eval/") and config.data.eval is None:
        return "needs held-out rows: give data.eval"
    if metric.startswith("samples/") and not config.eval.samples:
        return "needs sampled answers: give eval.samples"
    loss = metric_names.of_loss(config.loss.terms if isinstance(config.loss, SumConfig) else [config.loss.name])
    samples = metric_names.of_samples(true_reward=bool(config.eval.true_reward), kl=config.eval.temperature == 1.0)
    known = metric_names.of_run(loss, config.data.eval is not None, samples if config.eval.samples else ())
    return "" if metric in known else f"is no metric of these runs: expected one of {', '.join(known)}"


def _leave_to_slurm(running: list[_Running]) -> str:
    """Wait no longer for Slurm's jobs, which have not heard of what stops the sweep; what to say of them."""
    jobs = [one.job.number for one in running if isinstance(one.job, Submitted)]
    running[:] = [one for one in running if isinstance(one.job, Apart)]
    return f", and Slurm's jobs {', '.join(jobs)} stay in its queue" if jobs else ""


def _settings(run_dir: Path) -> dict[str, Any]:
    """What the run in a folder was told, as far as it says what was run."""
    file = run_dir / "config.yaml"
    values = OmegaConf.to_container(OmegaConf.load(file)) if read_config_file(file) else None
    return _comparable(values) if isinstance(values, dict) else {}


def _comparable(values: Mapping[Any, Any]) -> dict[str, Any]:
    without_effect = ("run_dir", "resume", "resume_force", "tracker", "launch", "sweep")
    return {str(key): value for key, value in values.items() if key not in without_effect}


def _shares(parallel: int) -> list[list[str]]:
    """The GPUs of each slot, by their names in CUDA_VISIBLE_DEVICES; none, where there are none.

    Raises:
        DpoError: if there are fewer than slots.
    """
    if parallel == 1 or not (count := devices(none=0)):
        return [[] for _ in range(parallel)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = visible.split(",")[:count]
    if count < parallel:
        raise DpoError(f"sweep.parallel={parallel}: there are {count} GPUs; expected no more than one job for each")
    each = count // parallel
    return [names[slot * each : (slot + 1) * each] for slot in range(parallel)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
