"""Sweeps: ``dpo train -m loss.beta=0.05,0.1``. Hydra says which points; this runs them and says how they went.

A sweep's folder follows from what was asked, so the same command again finds what is done and does only the rest.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dpo_cli.config import TrainConfig
from dpo_cli.errors import DpoError, ExitCode, Preempted
from dpo_cli.launch import run_apart
from dpo_cli.overrides import apart
from dpo_cli.run_folder import read

# Words of the command line that don't change what is run.
_WITHOUT_EFFECT = ("run_dir=", "resume=", "tracker.")


@dataclass(frozen=True)
class Job:
    """One point of a sweep, run or found done."""

    name: str
    run_dir: Path
    outcome: str
    exit_code: int


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
        self._fixed = {override.input_line for override in overrides if not override.is_sweep_override()}
        values = {override.get_key_element(): override.value() for override in overrides}
        what = sorted(override.input_line for override in overrides)
        what = [word for word in what if not word.startswith(_WITHOUT_EFFECT)]
        digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", str(values.get("+experiment", "train")))
        self.folder = Path(str(values.get("run_dir") or Path("runs") / f"sweep-{name}-{digest}"))
        self._jobs: list[Job] = []

    def run_job(self, config: TrainConfig, overrides: Sequence[str]) -> None:
        """Run one point in a process of its own, unless it is done already. Its failure is said, and the sweep goes on.

        Args:
            config: of the job.
            overrides: its own, the swept values among them.
        """
        name = self._name(overrides)
        run_dir = self.folder / name
        tracker = config.tracker.model_copy(
            update={"group": config.tracker.group or self.folder.name, "run_name": name}
        )
        job = config.model_copy(update={"run_dir": str(run_dir), "resume": "auto", "tracker": tracker})
        if read(run_dir).get("status") == "done":
            if _settings(run_dir) != _comparable(job.model_dump(mode="json")):
                message = (
                    f"{run_dir} holds a finished run of another configuration: remove it, or sweep in another run_dir"
                )
                self.refuse(overrides, DpoError(message))
                return
            _say(f"{name}: done before, in {run_dir}")
            self._jobs.append(Job(name, run_dir, "done before", 0))
            return
        _say(f"{name}: job {len(self._jobs) + 1}, in {run_dir}")
        ended = run_apart("train", job, {"DPO_SWEEP": "1"})
        code = ended.exit_code
        if code:
            _say(ended.text or f"dpo: exit code {code}")
            _say(f"{name}: {'stopped' if code == ExitCode.PREEMPTED else f'failed with exit code {code}'}")
        self._jobs.append(Job(name, run_dir, f"failed ({code})" if code else "done", code))
        if ended.interrupted or code == ExitCode.PREEMPTED:  # somebody wants all of it to end
            raise Preempted(f"the sweep was stopped; the same command goes on from here, with {name}")

    def refuse(self, overrides: Sequence[str], error: DpoError) -> None:
        """A point whose configuration is wrong: said, counted as failed, and the sweep goes on."""
        name = self._name(overrides)
        _say(f"{name}: failed\ndpo: {error}")
        self._jobs.append(Job(name, self.folder / name, f"failed ({int(error.exit_code)})", int(error.exit_code)))

    def _name(self, overrides: Sequence[str]) -> str:
        swept = [override.lstrip("+") for override in overrides if override not in self._fixed]
        return re.sub(r"[^\w.,=+-]+", "_", ",".join(swept)) or "job"

    def finish(self) -> int:
        """Print what each job reached; returns the exit code."""
        if not self._jobs:
            return int(ExitCode.DONE)
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        records = {job.name: read(job.run_dir) for job in self._jobs}
        finals: dict[str, dict[str, Any]] = {name: record.get("final", {}) for name, record in records.items()}
        held_out = any("eval/loss" in final for final in finals.values())
        headings = _COLUMNS if held_out else _TRAINING_COLUMNS
        columns = [name for name in headings if any(name in final for final in finals.values())]
        whose = "held out" if held_out else "of the last update"
        title = f"{len(self._jobs)} runs in {self.folder}; loss, accuracy and margin {whose}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("run", "outcome", *(headings[name] for name in columns), "ref. tokens", "s"):
            left = heading in ("run", "outcome")
            table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=heading != "run")
        for job in self._jobs:
            record, final = records[job.name], finals[job.name]
            values = ["" if final.get(name) is None else f"{final[name]:.3f}" for name in columns]
            computed = str(record.get("reference", {}).get("tokens_computed", ""))
            table.add_row(job.name, job.outcome, *values, computed, f"{record.get('seconds', 0):.0f}")
        # Where nobody watches, lines may be as long as they need to be.
        Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
        self._say_best()
        return next((job.exit_code for job in self._jobs if job.exit_code), int(ExitCode.DONE))

    def _say_best(self) -> None:
        """Which settings were best, and how to see more. A sweep's outcome is not changed by what goes wrong here."""
        from dpo_cli.reporting.compare import default_metric, verdict
        from dpo_cli.reporting.runs import read_runs

        folders = [job.run_dir for job in self._jobs if job.exit_code == 0]
        if len(folders) > 1:
            try:
                runs = read_runs(folders)
            except OSError as error:
                _say(f"the runs could not be read again: {error}")
                return
            print(verdict(runs, default_metric(runs)))
        if any(job.run_dir.is_dir() for job in self._jobs):
            print(f"curves, reward against KL and samples in one page: dpo report {shlex.quote(str(self.folder))}")


# Metrics of a finished run, as columns. What was not held out is shown only where nothing was.
_COLUMNS = {
    "eval/loss": "loss",
    "eval/rewards/accuracies": "acc.",
    "eval/rewards/margins": "margin",
    "samples/true_reward": "reward",
    "samples/kl": "KL",
}
_TRAINING_COLUMNS = {"loss": "loss", "rewards/accuracies": "acc.", "rewards/margins": "margin"}


def _settings(run_dir: Path) -> dict[str, Any]:
    """What the run in a folder was told, as far as it says what was run."""
    values = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    return _comparable(values) if isinstance(values, dict) else {}


def _comparable(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items() if key not in ("run_dir", "resume", "tracker")}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
